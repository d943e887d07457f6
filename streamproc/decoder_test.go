package streamproc

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// lock is a scheme whose packets are the key's name and the secret, side by side.
func lock() keys.Scheme {
	return keys.Scheme{
		Name: "lock",
		Identity: func(k keys.Key) (keys.Identity, error) {
			if !bytes.HasPrefix(k.Data, []byte("key ")) {
				return nil, keys.ErrNoMatch
			}
			return lockKey(k.Data), nil
		},
	}
}

type lockKey string

func (k lockKey) Name() string { return string(k) }

func (k lockKey) Unwrap(_ context.Context, packets []layer.Packet) ([]byte, error) {
	for _, p := range packets {
		if secret, ok := bytes.CutPrefix(p.Data, []byte(k+":")); ok {
			return secret, nil
		}
	}
	return nil, keys.ErrNoMatch
}

type brokenKey struct{}

var errBroken = errors.New("broken")

func (brokenKey) Unwrap(context.Context, []layer.Packet) ([]byte, error) { return nil, errBroken }

// sealFor encrypts plain for the holder of key.
func sealFor(t *testing.T, plain []byte, key string) (sealed []byte, desc ocispec.Descriptor) {
	t.Helper()
	s, err := layer.NewSealer(bytes.NewReader(plain), "", -1)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err = io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Sealed()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := layer.MarshalSecret(info.Secret)
	if err != nil {
		t.Fatal(err)
	}
	public, err := layer.MarshalPublic(info.Public)
	if err != nil {
		t.Fatal(err)
	}
	return sealed, ocispec.Descriptor{
		MediaType: "application/vnd.oci.image.layer.v1.tar+encrypted",
		Digest:    info.Digest,
		Size:      info.Size,
		Annotations: map[string]string{
			layer.KeysAnnotationPrefix + "lock": base64.StdEncoding.EncodeToString([]byte(key + ":" + string(secret))),
			layer.PublicAnnotation:              public,
		},
	}
}

func sent(keys ...string) DecryptConfig {
	c := DecryptConfig{Parameters: map[string][][]byte{}}
	for _, k := range keys {
		c.Parameters["privkeys"] = append(c.Parameters["privkeys"], []byte(k))
	}
	return c
}

func TestDecoderKeys(t *testing.T) {
	t.Parallel()
	plain := []byte("plain bytes")
	sealed, desc := sealFor(t, plain, "key A")
	warning := errors.New("README: no key")
	for _, tt := range []struct {
		name   string
		sent   DecryptConfig
		node   []keys.Identity
		noNode bool
		want   error
		says   string
		asked  bool // the node's keys were asked for
	}{
		{name: "sent", sent: sent("key A"), node: []keys.Identity{brokenKey{}}},
		{name: "second sent", sent: sent("key B", "key A"), node: nil},
		{name: "node, nothing sent", node: []keys.Identity{lockKey("key A")}, asked: true},
		{name: "node, others sent", sent: sent("key B"), node: []keys.Identity{lockKey("key C"), lockKey("key A")}, asked: true},
		{name: "node, garbage sent", sent: sent("garbage"), node: []keys.Identity{lockKey("key A")}, asked: true},
		{name: "a broken one before", node: []keys.Identity{brokenKey{}, lockKey("key A")}, asked: true},
		{name: "none at all", noNode: true, want: keys.ErrNoKey, says: "no key was given"},
		{name: "none anywhere", want: keys.ErrNoKey, asked: true, says: "no key was given"},
		{name: "wrong everywhere", sent: sent("key B"), node: []keys.Identity{lockKey("key C"), lockKey("key D")},
			want: keys.ErrNoKey, asked: true, says: "none of the 3 keys opens it"},
		{name: "wrong and broken", sent: sent("key B"), node: []keys.Identity{brokenKey{}}, want: errBroken, asked: true, says: "broken"},
		{name: "garbage only", sent: sent("garbage"), noNode: true, want: keys.ErrNoKey, says: "privkeys[0]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := false
			var warned []error
			d := Decoder{
				Schemes: []keys.Scheme{lock()},
				NodeKeys: func() ([]keys.Identity, []error) {
					asked = true
					return tt.node, []error{warning}
				},
				Warn: func(err error) { warned = append(warned, err) },
			}
			if tt.noNode {
				d.NodeKeys = nil
			}
			p := &Payload{DecryptConfig: tt.sent, Descriptor: desc}
			r, err := d.Open(t.Context(), p, bytes.NewReader(sealed))
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if asked != tt.asked || slices.Contains(warned, warning) != tt.asked {
				t.Errorf("node's keys asked for: %v, want %v; warned %v", asked, tt.asked, warned)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), desc.Digest.String()) {
					t.Errorf("%q does not say %q and the layer", err, tt.says)
				}
				return
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// The bytes arrive whatever the layer's media type is called and however the
// ciphertext comes in; of what does not fit its MAC, too little arrives.
func TestDecoderBytes(t *testing.T) {
	t.Parallel()
	big := make([]byte, 3*layer.Holdback+17)
	_, _ = rand.Read(big)
	for _, plain := range [][]byte{{}, {1}, big[:layer.Holdback], big} {
		sealed, desc := sealFor(t, plain, "key A")
		open := func(desc ocispec.Descriptor, src io.Reader) ([]byte, error) {
			d := Decoder{Schemes: []keys.Scheme{lock()}}
			r, err := d.Open(t.Context(), &Payload{DecryptConfig: sent("key A"), Descriptor: desc}, src)
			if err != nil {
				return nil, err
			}
			return io.ReadAll(r)
		}
		for _, mediaType := range []string{
			"application/vnd.oci.image.layer.v1.tar+encrypted",
			"application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
			"application/vnd.oci.image.layer.v1.tar+zstd+encrypted",
			"application/vnd.oci.image.layer.nondistributable.v1.tar+encrypted",
			"application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
			"application/vnd.oci.image.layer.v1.tar", "",
		} {
			desc.MediaType = mediaType
			got, err := open(desc, iotest.HalfReader(bytes.NewReader(sealed)))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes as %q: %d bytes, %v", len(plain), mediaType, len(got), err)
			}
		}
		wrong := bytes.Clone(sealed)
		if len(wrong) > 0 {
			wrong[0] ^= 1
		} else {
			wrong = []byte{1}
		}
		for name, src := range map[string]io.Reader{
			"wrong": bytes.NewReader(wrong),
			"long":  io.MultiReader(bytes.NewReader(sealed), strings.NewReader("x")),
			"short": bytes.NewReader(sealed[:max(0, len(sealed)-1)]),
		} {
			if name == "short" && len(sealed) == 0 {
				continue
			}
			got, err := open(desc, src)
			if !errors.Is(err, layer.ErrTampered) {
				t.Errorf("%s, %d bytes: %v", name, len(plain), err)
			}
			if len(got) > max(0, len(plain)-layer.Holdback) {
				t.Errorf("%s, %d bytes: %d were released", name, len(plain), len(got))
			}
		}
		if _, err := open(desc, iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(sealed)))); len(sealed) > 1 && !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("reader's error: got %v", err)
		}
	}
}

func TestDecoderAnnotations(t *testing.T) {
	t.Parallel()
	public := func(mac []byte) string {
		text, err := layer.MarshalPublic(layer.Public{MAC: mac})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, tt := range []struct {
		name  string
		spoil func(*ocispec.Descriptor)
		want  error
	}{
		{"no options", func(d *ocispec.Descriptor) { delete(d.Annotations, layer.PublicAnnotation) }, layer.ErrTampered},
		{"no MAC", func(d *ocispec.Descriptor) { d.Annotations[layer.PublicAnnotation] = public(nil) }, layer.ErrTampered},
		{"short MAC", func(d *ocispec.Descriptor) { d.Annotations[layer.PublicAnnotation] = public(make([]byte, 31)) }, layer.ErrTampered},
		{"options are not base64", func(d *ocispec.Descriptor) { d.Annotations[layer.PublicAnnotation] = "%" }, layer.ErrMalformed},
		{"options are not JSON", func(d *ocispec.Descriptor) { d.Annotations[layer.PublicAnnotation] = "eA==" }, layer.ErrMalformed},
		{"packet is not base64", func(d *ocispec.Descriptor) { d.Annotations[layer.KeysAnnotationPrefix+"lock"] = "%" }, layer.ErrMalformed},
		{"no annotations", func(d *ocispec.Descriptor) { d.Annotations = nil }, layer.ErrMalformed},
		{"negative size", func(d *ocispec.Descriptor) { d.Size = -1 }, layer.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sealed, desc := sealFor(t, []byte("plain"), "key A")
			tt.spoil(&desc)
			d := Decoder{Schemes: []keys.Scheme{lock()}}
			_, err := d.Open(t.Context(), &Payload{DecryptConfig: sent("key A"), Descriptor: desc}, bytes.NewReader(sealed))
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestDecoderNamesNoForgedDigest(t *testing.T) {
	t.Parallel()
	d := Decoder{}
	p := &Payload{Descriptor: ocispec.Descriptor{Digest: "sha256:\nforged"}}
	if _, err := d.Open(t.Context(), p, strings.NewReader("")); err == nil || strings.Contains(err.Error(), "forged") {
		t.Errorf("got %v", err)
	}
}
