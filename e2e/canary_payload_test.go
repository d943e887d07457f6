package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testnode"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
	"imgcrypt/streamproc"
)

// recorder writes a decoder that keeps its payload in a file before it does its work.
func recorder(t *testing.T) (program, dir string) {
	t.Helper()
	dir, program = t.TempDir(), filepath.Join(t.TempDir(), "decoder")
	text := fmt.Sprintf("#!/bin/sh\nfile=$(mktemp %s/XXXXXX) && cat <&3 >$file && exec 4<&0 && cat $file | exec %s \"$@\" 3<&0 0<&4 4<&-\n",
		dir, testenv.Build(t, "./cmd/ctd-decoder"))
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, dir
}

// recorded returns the payloads in a directory, by the digest of their layers, and removes them.
func recorded(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]byte)
	for _, file := range files {
		data := readFile(t, file)
		p, err := streamproc.ParseAny(data)
		if err != nil {
			t.Fatal(err)
		}
		all[p.Descriptor.Digest.String()] = data
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// sends checks what goes to containerd for a layer: a key that is made for it, the layer's secret wrapped for that, and
// nothing else that is secret, whichever of the user's keys opens the image.
func (s *secretKeeper) sends(t *testing.T) {
	t.Helper()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			program, dir := recorder(t)
			n := startNode(t, testnode.Config{Version: version, DecoderPath: program})
			n.env = s.env()
			n.load(t, runnable(t), plainName)
			var recipients []string
			for _, name := range s.names() {
				recipients = append(recipients, s.holders[name].Recipient)
			}
			n.enc(slices.Concat([]string{"images", "encrypt"}, flags("--recipient", recipients), []string{plainName, encName})...).OK(t)
			archive := filepath.Join(t.TempDir(), "image.tar")
			n.enc("images", "export", archive, encName).OK(t)
			layers := n.manifest(t, encName).Layers
			again := func() {
				n.Clean(t)
				n.enc("images", "import", "--no-unpack", archive).OK(t)
			}
			made := make(map[string]bool) // one-time keys
			for _, name := range s.names() {
				again()
				if r := n.run(flags("--key", s.holders[name].Keys), encName).OK(t); r.Stdout != hello {
					t.Errorf("%s: %s", name, r)
				}
				payloads := recorded(t, dir)
				for _, l := range layers {
					made[s.checkPayload(t, payloads[l.Digest.String()], l)] = true
				}
				if len(payloads) != len(layers) {
					t.Errorf("%s: %d payloads for %d layers", name, len(payloads), len(layers))
				}
			}
			if want := len(layers) * len(s.holders); len(made) != want {
				t.Errorf("%d one-time keys, want %d", len(made), want)
			}
			again()
			s.withoutKey(t, n, dir, layers[0])
			s.byOldClient(t, n, dir)
		})
	}
}

// checkPayload returns the one-time key.
func (s *secretKeeper) checkPayload(t *testing.T, data []byte, image ocispec.Descriptor) string {
	t.Helper()
	if data == nil {
		t.Fatalf("no payload for layer %s", image.Digest)
	}
	p, err := streamproc.ParseAny(data)
	if err != nil {
		t.Fatal(err)
	}
	s.secrets.absent(t, "payload", string(data))
	layerSecrets(t, s.a.Requests(t)...).absent(t, "payload", string(data))
	params := p.DecryptConfig.Parameters
	if kinds := slices.Sorted(maps.Keys(params)); !slices.Equal(kinds, []string{keys.ParamPrivateKeys, keys.ParamPasswords}) ||
		len(params[keys.ParamPrivateKeys]) != 1 || len(params[keys.ParamPasswords]) != 1 || len(params[keys.ParamPasswords][0]) != 0 {
		t.Fatalf("the payload has %q", kinds)
	}
	one := params[keys.ParamPrivateKeys][0]
	if key, err := keys.ParsePrivateKey(one, nil); err != nil {
		t.Error(err)
	} else if _, ok := key.(*ecdsa.PrivateKey); !ok {
		t.Errorf("its key is a %T", key)
	}
	// The packets are its own, and the rest is what the image says.
	for name, text := range image.Annotations {
		if !strings.HasPrefix(name, layer.KeysAnnotationPrefix) && p.Descriptor.Annotations[name] != text {
			t.Errorf("annotation %s is %q", name, p.Descriptor.Annotations[name])
		}
	}
	packets, err := layer.Packets(p.Descriptor.Annotations)
	if err != nil || len(packets) != 1 || packets[0].Scheme != "jwe" || bytes.Contains([]byte(image.Annotations[layer.KeysAnnotationPrefix+"jwe"]), packets[0].Data) {
		t.Errorf("its packets are %q, %v", packets, err)
	}
	ids, err := keys.FromParameters(schemes.All(schemes.Options{}), keys.Parameters(params))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Open(t.Context(), ids, p.Descriptor.Annotations); err != nil {
		t.Error(err)
	}
	if _, err := keys.Open(t.Context(), ids, image.Annotations); err == nil {
		t.Error("its key opens a packet of the image")
	}
	return string(one)
}

// withoutKey has a client send what it cannot open: the descriptor as it is.
func (s *secretKeeper) withoutKey(t *testing.T, n *node, dir string, first ocispec.Descriptor) {
	t.Helper()
	nobody := n.with([]string{"HOME=" + t.TempDir()})
	nobody.run([]string{"--skip-decrypt-auth", "--key", s.wrong.private}, encName).Fails(t)
	data, ok := recorded(t, dir)[first.Digest.String()]
	if !ok {
		t.Fatal("no payload")
	}
	s.secrets.absent(t, "payload without a key", string(data))
	p, err := streamproc.ParseAny(data)
	if err != nil || len(p.DecryptConfig.Parameters) > 0 || !maps.Equal(p.Descriptor.Annotations, first.Annotations) {
		t.Errorf("payload %v, %v", p, err)
	}
}

// byOldClient has a client send its keys, as those of containerd's imgcrypt do: what these tests would find.
func (s *secretKeeper) byOldClient(t *testing.T, n *node, dir string) {
	t.Helper()
	ctx, client := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t)
	img, err := client.ImageService().Get(ctx, encName)
	if err != nil {
		t.Fatal(err)
	}
	payload := new(imgcrypt.Payload)
	payload.DecryptConfig.Parameters = map[string][][]byte{keys.ParamPrivateKeys: {readFile(t, s.locked)}, keys.ParamPasswords: {readFile(t, s.password)}}
	err = containerd.NewImageWithPlatform(client, img, platforms.Default()).Unpack(ctx, n.Snapshotter(),
		encryption.WithUnpackConfigApplyOpts(encryption.WithDecryptedUnpack(payload)))
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range recorded(t, dir) {
		if found := s.secrets.in(data); !slices.Equal(found, []string{"the locked private key", "the password"}) {
			t.Errorf("found %q", found)
		}
	}
}
