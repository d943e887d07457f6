package layer_test

import (
	"encoding/base64"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/spec"
	"github.com/google/go-cmp/cmp"

	"imgcrypt/layer"
)

const keysPrefix = "org.opencontainers.image.enc.keys."

func TestPackets(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString
	got, err := layer.Packets(map[string]string{
		keysPrefix + "pgp":          b64([]byte("p1")),
		keysPrefix + "jwe":          b64([]byte("j1")) + ",!," + b64([]byte("j2")),
		keysPrefix + "provider.kms": b64([]byte("k1")),
		keysPrefix + "pkcs7":        "",
		keysPrefix:                  b64([]byte("no scheme")),
		"other":                     "x",
	})
	want := []layer.Packet{{"jwe", []byte("j1")}, {"jwe", []byte("j2")}, {"pgp", []byte("p1")}, {"provider.kms", []byte("k1")}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(err, layer.ErrMalformed) || !strings.Contains(err.Error(), keysPrefix+"jwe") {
		t.Errorf("of the damaged packet: %v", err)
	}
	many := strings.Repeat("eA==,", layer.MaxPackets) + "eA=="
	if got, err := layer.Packets(map[string]string{keysPrefix + "jwe": many}); len(got) != layer.MaxPackets || !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("%d packets: %v", len(got), err)
	}
	_, err = layer.Packets(map[string]string{keysPrefix + "jwe": strings.Repeat(",", 4<<20)})
	if !errors.Is(err, layer.ErrMalformed) || len(err.Error()) > 200*layer.MaxPackets {
		t.Errorf("four million empty packets: %.300v", err)
	}
	if got, err := layer.Packets(map[string]string{keysPrefix + "\x1b[2J": "eA=="}); len(got) != 0 || !errors.Is(err, layer.ErrMalformed) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("a scheme that moves the cursor: %v, %q", got, err)
	}
	huge := b64(make([]byte, layer.MaxPacketSize+3))
	if got, err := layer.Packets(map[string]string{keysPrefix + "jwe": huge}); len(got) != 0 || !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("a huge packet: %v", err)
	}
	if got := layer.AddPacket(layer.AddPacket("", layer.Packet{Data: []byte("a")}), layer.Packet{Data: []byte("b")}); got != "YQ==,Yg==" {
		t.Errorf("AddPacket: %q", got)
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	s := layer.Secret{Key: [32]byte{1}, Nonce: [16]byte{2}, Digest: "sha256:x"}
	text, err := layer.MarshalSecret(s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"symkey":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"sha256:x","cipheroptions":{"nonce":"AgAAAAAAAAAAAAAAAAAAAA=="}}`
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if got, err := layer.ParseSecret(text); err != nil || got != s {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{
		``, `null`, `[]`, `{"symkey":"c2VjcmV0"}`, strings.Replace(want, "AQAA", "AQ", 1), strings.Replace(want, "nonce", "iv", 1),
		strings.Replace(want, `AgAAAAAAAAAAAAAAAAAAAA==`, `Ag==`, 1), want + "x", strings.Repeat(" ", layer.MaxSecretSize) + want,
		`{"symkey":"geheimgeheim!`, `{"symkey":["AQAA"]}`,
	} {
		_, err := layer.ParseSecret([]byte(bad))
		if !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("%.80s: %v", bad, err)
		} else if strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), "AQAA") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func TestPublic(t *testing.T) {
	t.Parallel()
	text, err := layer.MarshalPublic(layer.Public{MAC: []byte("mac")})
	if err != nil {
		t.Fatal(err)
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if want := `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"bWFj","cipheroptions":{}}`; err != nil || string(data) != want {
		t.Errorf("got %s, want %s", data, want)
	}
	if got, err := layer.ParsePublic(map[string]string{layer.PublicAnnotation: text}); err != nil || string(got.MAC) != "mac" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := layer.ParsePublic(nil); err != nil || got.MAC != nil {
		t.Errorf("without the annotation: %+v, %v", got, err)
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	types := map[string]string{
		"application/vnd.oci.image.layer.v1.tar":                       spec.MediaTypeLayerEnc,
		"application/vnd.oci.image.layer.v1.tar+gzip":                  spec.MediaTypeLayerGzipEnc,
		"application/vnd.oci.image.layer.v1.tar+zstd":                  spec.MediaTypeLayerZstdEnc,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":      spec.MediaTypeLayerNonDistributableEnc,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": spec.MediaTypeLayerNonDistributableGzipEnc,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": spec.MediaTypeLayerNonDistributableZstdEnc,
		"application/vnd.docker.image.rootfs.diff.tar":                 spec.MediaTypeLayerEnc,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            spec.MediaTypeLayerGzipEnc,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    spec.MediaTypeLayerNonDistributableGzipEnc,
		"application/vnd.cncf.helm.chart.content.v1.tar+gzip":          "application/vnd.cncf.helm.chart.content.v1.tar+gzip+encrypted",
		"application/vnd.oci.image.layer.v1.tar+gzip" + "+encrypted":   spec.MediaTypeLayerGzipEnc,
	}
	for plain, want := range maps.All(types) {
		got := layer.EncryptedMediaType(plain)
		if got != want || !layer.IsEncrypted(got) {
			t.Errorf("EncryptedMediaType(%q) = %q, want %q", plain, got, want)
		}
		if back := layer.PlainMediaType(got); back+"+encrypted" != got || layer.OCIMediaType(back) != back {
			t.Errorf("PlainMediaType(%q) = %q", got, back)
		}
	}
	if layer.IsEncrypted("application/vnd.oci.image.layer.v1.tar") || !layer.IsAnnotation(layer.PublicAnnotation) || layer.IsAnnotation("org.opencontainers.image.title") {
		t.Error("IsEncrypted or IsAnnotation")
	}
}

func FuzzAnnotations(f *testing.F) {
	f.Add("jwe", "eyJ4Ijoi,e30=", "eyJjaXBoZXIiOiJBRVNfMjU2X0NUUl9ITUFDX1NIQTI1NiIsImhtYWMiOiIifQ==")
	f.Add("provider.x", ",,,", "")
	f.Fuzz(func(t *testing.T, scheme, keys, public string) {
		a := map[string]string{layer.KeysAnnotationPrefix + scheme: keys, layer.PublicAnnotation: public}
		packets, err := layer.Packets(a)
		if len(packets) == 0 && err == nil && keys != "" && scheme != "" {
			t.Fatal("packets were lost silently")
		}
		value := ""
		for _, p := range packets {
			value = layer.AddPacket(value, p)
		}
		again, err := layer.Packets(map[string]string{layer.KeysAnnotationPrefix + scheme: value})
		if err != nil || !cmp.Equal(packets, again) {
			t.Fatalf("written again: %v, %v", again, err)
		}
		p, err := layer.ParsePublic(a)
		if err == nil && public != "" {
			text, err := layer.MarshalPublic(p)
			if err != nil {
				t.Fatal(err)
			}
			if q, err := layer.ParsePublic(map[string]string{layer.PublicAnnotation: text}); err != nil || string(q.MAC) != string(p.MAC) {
				t.Fatalf("written again: %v, %v", q, err)
			}
		}
	})
}

func FuzzSecret(f *testing.F) {
	f.Add([]byte(`{"symkey":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"sha256:x","cipheroptions":{"nonce":"AgAAAAAAAAAAAAAAAAAAAA=="}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := layer.ParseSecret(data)
		if err != nil {
			if !errors.Is(err, layer.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		text, err := layer.MarshalSecret(s)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := layer.ParseSecret(text); err != nil || again.Key != s.Key || again.Nonce != s.Nonce {
			t.Fatalf("written again: %v", err)
		}
	})
}
