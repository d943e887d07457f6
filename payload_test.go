package imgcrypt_test

import (
	"encoding/json"
	"testing"

	"github.com/containerd/typeurl/v2"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

func testPayload() *imgcrypt.Payload {
	return &imgcrypt.Payload{
		DecryptConfig: encconfig.DecryptConfig{Parameters: map[string][][]byte{
			"privkeys":           {[]byte("key")},
			"privkeys-passwords": {{}},
		}},
		Descriptor: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted",
			Digest:    digest.FromString("layer"),
			Size:      5,
		},
	}
}

func TestPayloadTravels(t *testing.T) {
	t.Parallel()
	want := testPayload()
	message, err := typeurl.MarshalAny(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := message.GetTypeUrl(); got != "io.containerd.ocicrypt.v1.Payload" {
		t.Errorf("type URL %q", got)
	}
	got, err := typeurl.UnmarshalAny(message)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Error(diff)
	}
}

// The decoder of containerd's imgcrypt reads this JSON, and ours reads its.
func TestPayloadJSON(t *testing.T) {
	t.Parallel()
	message, err := typeurl.MarshalAny(testPayload())
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(message.GetValue(), &got); err != nil {
		t.Fatal(err)
	}
	const text = `{
		"DecryptConfig": {"Parameters": {"privkeys": ["a2V5"], "privkeys-passwords": [""]}},
		"Descriptor": {
			"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
			"digest": "sha256:dac1d7cfa95021764849fd102524e141488c5e3a90f861dbb5a12d9ac8584f85",
			"size": 5
		}
	}`
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPayloadToolIDs(t *testing.T) {
	t.Parallel()
	want := []string{
		"io.containerd.ocicrypt.decoder.v1.tar",
		"io.containerd.ocicrypt.decoder.v1.tar.gzip",
		"io.containerd.ocicrypt.decoder.v1.tar.zstd",
	}
	if diff := cmp.Diff(want, imgcrypt.PayloadToolIDs); diff != "" {
		t.Error(diff)
	}
}
