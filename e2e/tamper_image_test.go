package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// victim is an encrypted image of one layer. Who forges it knows the plain bytes,
// but no key.
type victim struct {
	layout   ociLayout
	manifest ocispec.Manifest
	config   map[string]any
	desc     ocispec.Descriptor // of the manifest
	plain    []byte             // the layer's, as it was before the encryption
	sealed   []byte
	// secret is not the forger's: it says what a decoder will make of a forgery.
	secret layer.Secret
}

// victimSpecs are the layers of victims: smaller and larger than what the decoder
// holds back.
func victimSpecs() map[string]testimage.Layer {
	const large, small = 4<<20 + 12345, 5_000
	return map[string]testimage.Layer{
		"small":      {RandomSize: small, Compression: testimage.None},
		"small gzip": {RandomSize: small},
		"large":      {RandomSize: large, Compression: testimage.None},
		"large gzip": {RandomSize: large},
		"large zstd": {RandomSize: large, Compression: testimage.Zstd},
	}
}

// newVictims makes an image of each kind, for one recipient.
func newVictims(t testing.TB, k keyPair) map[string]*victim {
	t.Helper()
	victims := make(map[string]*victim)
	for kind, l := range victimSpecs() {
		v := &victim{layout: ociLayout(t.TempDir())}
		spec := testimage.Spec{Layers: []testimage.Layer{l}, Salt: kind + k.public}
		plain, err := spec.Write(string(v.layout), "plain")
		if err != nil {
			t.Fatal(err)
		}
		unmarshal(t, v.layout.blob(t, plain), &v.manifest)
		v.plain = v.layout.blob(t, v.manifest.Layers[0])
		v.desc = v.layout.encrypt(t, plain, "encrypted", k.recipient())
		v.manifest = ocispec.Manifest{}
		unmarshal(t, v.layout.blob(t, v.desc), &v.manifest)
		unmarshal(t, v.layout.blob(t, v.manifest.Config), &v.config)
		v.sealed = v.layout.blob(t, v.manifest.Layers[0])
		v.secret, err = keys.Open(t.Context(), identitiesOf(t, k.private), v.manifest.Layers[0].Annotations)
		if err != nil {
			t.Fatal(err)
		}
		victims[kind] = v
	}
	return victims
}

// forgery is what whoever controls the registry makes of a victim.
type forgery struct {
	name string
	// of is the kind of the victim.
	of string
	// bytes returns the new ciphertext; nil keeps the victim's.
	bytes func(v *victim) []byte
	// mac edits the public options; nil keeps them.
	mac func(options map[string]any)
	// diffID goes into the config; nil keeps the victim's.
	diffID func(f *forged) digest.Digest
}

// forged is a forgery with all digests recomputed.
type forged struct {
	forgery
	victim *victim
	layer  ocispec.Descriptor
	sealed []byte
	// released is what the decoder lets out before it fails, all if it does not.
	released []byte
	// desc is the manifest's.
	desc ocispec.Descriptor
	// chainID is the name that its snapshot would have.
	chainID string
}

// forge makes the image in the victim's layout, for a decoder with this holdback; 0 is ours.
func (v *victim) forge(t testing.TB, how forgery, holdback int) *forged {
	t.Helper()
	f := &forged{forgery: how, victim: v, sealed: v.sealed}
	if how.bytes != nil {
		f.sealed = how.bytes(v)
	}
	f.layer = v.layout.put(t, v.manifest.Layers[0].MediaType, f.sealed)
	f.layer.Annotations = maps.Clone(v.manifest.Layers[0].Annotations)
	if how.mac != nil {
		f.layer.Annotations[layer.PublicAnnotation] = editJSON(t, f.layer.Annotations[layer.PublicAnnotation], how.mac)
	}
	f.released = f.stream()
	if how.bytes != nil || how.mac != nil {
		f.released = f.released[:f.letOut(t, holdback)]
	}
	rootfs := maps.Clone(v.config["rootfs"].(map[string]any))
	diffID := digest.Digest(rootfs["diff_ids"].([]any)[0].(string))
	if how.diffID != nil {
		diffID = how.diffID(f)
	}
	f.chainID = identity.ChainID([]digest.Digest{diffID}).String()
	rootfs["diff_ids"] = []digest.Digest{diffID}
	config := maps.Clone(v.config)
	config["rootfs"] = rootfs
	manifest := v.manifest
	manifest.Layers = []ocispec.Descriptor{f.layer}
	manifest.Config = v.layout.put(t, v.manifest.Config.MediaType, marshal(t, config))
	f.desc = v.layout.put(t, v.desc.MediaType, marshal(t, manifest))
	return f
}

// editJSON edits an annotation that is base64 of a JSON object. Without any member left it is empty.
func editJSON(t testing.TB, annotation string, edit func(map[string]any)) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(annotation)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	unmarshal(t, data, &m)
	edit(m)
	return base64.StdEncoding.EncodeToString(marshal(t, m))
}

// known is the known-plaintext attack: the ciphertext of other plain bytes of the same length.
func (v *victim) known(plain []byte) []byte {
	forged := bytes.Clone(v.sealed)
	for i := range forged {
		forged[i] ^= v.plain[i] ^ plain[i]
	}
	return forged
}

// stream returns all that the forged ciphertext decrypts to.
func (f *forged) stream() []byte {
	block, err := aes.NewCipher(f.victim.secret.Key[:])
	if err != nil {
		panic(err)
	}
	plain := make([]byte, len(f.sealed))
	cipher.NewCTR(block, f.victim.secret.Nonce[:]).XORKeyStream(plain, f.sealed)
	return plain
}

// whole is the diff id of the whole forged stream.
func whole(f *forged) digest.Digest { return digest.FromBytes(f.tarOf(f.stream())) }

// released is the diff id of what the decoder lets out before it fails.
func released(f *forged) digest.Digest { return digest.FromBytes(f.tarOf(f.released)) }

// empty is the diff id of a layer of which the decoder lets out nothing.
func empty(*forged) digest.Digest { return digest.FromBytes(nil) }

// tarOf decompresses a stream, as far as it goes.
func (f *forged) tarOf(stream []byte) []byte {
	r, err := plainTar(f.layer.MediaType, bytes.NewReader(stream))
	if err != nil {
		return nil
	}
	defer r.Close()
	tar, _ := io.ReadAll(r)
	return tar
}

// breaksOff says whether what the decoder lets out is no whole tar. containerd fails at that point by
// itself then, and does not ask the decoder why.
func (f *forged) breaksOff() bool {
	r, err := plainTar(f.layer.MediaType, bytes.NewReader(f.released))
	if err != nil {
		return len(f.released) > 0
	}
	defer r.Close()
	for tr := tar.NewReader(r); err == nil; {
		if _, err = tr.Next(); err == nil {
			_, err = io.Copy(io.Discard, tr)
		}
	}
	return err != io.EOF
}

// letOut is how many bytes of the layer a decoder with this holdback lets out before it fails; 0 is ours.
func (f *forged) letOut(t testing.TB, holdback int) int {
	t.Helper()
	if holdback > 0 {
		return max(0, len(f.sealed)-holdback)
	}
	public, err := layer.ParsePublic(f.layer.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	return opened(f.sealed, f.victim.secret, public)
}

// opened is how many bytes of a layer ours lets out before it fails, as it has to.
func opened(sealed []byte, secret layer.Secret, public layer.Public) (n int) {
	o, err := layer.NewOpener(bytes.NewReader(sealed), secret, public, int64(len(sealed)))
	if err == nil {
		var out int64
		out, err = io.Copy(io.Discard, o)
		n = int(out)
	}
	if !errors.Is(err, layer.ErrTampered) {
		panic(fmt.Sprintf("a forged layer is taken for a good one: %v", err))
	}
	return n
}

// evilTar is a layer that ends with its end-of-archive mark.
func evilTar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := []byte("root::0:0:forged:/:/bin/sh\n")
	err := w.WriteHeader(&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(body)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// evil returns a forged layer of the victim's compression and length, complete in the bytes that a decoder
// with this holdback lets out, so that what is missing does not show.
func evil(holdback int) func(v *victim) []byte {
	return func(v *victim) []byte {
		size := len(v.plain)
		cut := max(0, size-holdback)
		if holdback == 0 {
			cut = opened(make([]byte, size), layer.Secret{}, layer.Public{MAC: make([]byte, 32)})
		}
		var b bytes.Buffer
		switch mediaType := v.manifest.Layers[0].MediaType; {
		case strings.Contains(mediaType, "gzip"):
			w := gzip.NewWriter(&b)
			if _, err := w.Write(evilTar()); errors.Join(err, w.Close()) != nil {
				panic("gzip")
			}
			if cut > 0 {
				padGzip(&b, cut-b.Len())
			}
			padGzip(&b, size-b.Len())
		case strings.Contains(mediaType, "zstd"):
			w, err := zstd.NewWriter(nil)
			if err != nil {
				panic(err)
			}
			b.Write(w.EncodeAll(evilTar(), nil))
			padZstd(&b, cut-b.Len())
			padZstd(&b, size-b.Len())
		default:
			b.Write(evilTar())
			b.Write(make([]byte, size-b.Len()))
		}
		return v.known(b.Bytes())
	}
}

// padGzip writes n bytes of empty members, with an extra field each.
func padGzip(b *bytes.Buffer, n int) {
	for n > 0 {
		size := n
		if size > 1<<16 {
			size = 1 << 15
		}
		b.Write([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff})
		b.Write(binary.LittleEndian.AppendUint16(nil, uint16(size-22)))
		b.Write(make([]byte, size-22))
		b.Write([]byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		n -= size
	}
}

// padZstd writes a skippable frame of n bytes.
func padZstd(b *bytes.Buffer, n int) {
	b.Write([]byte{0x50, 0x2a, 0x4d, 0x18})
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(n-8)))
	b.Write(make([]byte, n-8))
}

// plainTar returns a reader of a layer's tar, whose media type says how it is compressed.
func plainTar(mediaType string, r io.Reader) (io.ReadCloser, error) {
	switch mediaType = layer.PlainMediaType(mediaType); {
	case strings.HasSuffix(mediaType, "gzip"):
		return gzip.NewReader(r)
	case strings.HasSuffix(mediaType, "zstd"):
		d, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return io.NopCloser(r), nil
	}
}

func decompress(t testing.TB, mediaType string, r io.Reader) []byte {
	t.Helper()
	tar, err := plainTar(mediaType, r)
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	data, err := io.ReadAll(tar)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func unmarshal(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
