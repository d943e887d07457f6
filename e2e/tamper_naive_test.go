package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	encconfig "github.com/containers/ocicrypt/config"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// naiveHoldback is what testdata/tamper_naive keeps until it has seen the MAC.
const naiveHoldback = 10 << 10

// TestForgedImagesNaiveDecoder shows what TestForgedImages is for: the same forgeries, made for a decoder
// that lets containerd miss its failure. How often containerd misses it is luck, so this is only said.
func TestForgedImagesNaiveDecoder(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, "runc")
	registry, k := testregistry.Start(t), ecKeys(t)
	config := clientConfig(t, k)
	victims := newVictims(t, k)
	var images []*forged
	for i, how := range []forgery{
		{name: "forged, complete in what is released", of: "large", bytes: evil(naiveHoldback), diffID: released},
		{name: "forged, complete in what is released", of: "large gzip", bytes: evil(naiveHoldback), diffID: released},
		{name: "MAC altered, empty diff id", of: "small", mac: otherMAC, diffID: empty},
	} {
		f := victims[how.of].forge(t, how, naiveHoldback)
		registry.PushDescriptor(t, string(f.victim.layout), f.desc, fmt.Sprintf("naive:v%d", i))
		images = append(images, f)
	}
	onEach(t, testnode.Config{DecoderPath: testenv.Build(t, "./e2e/testdata/tamper_naive")}, func(t *testing.T, n *node) {
		for i, f := range images {
			p := &puller{node: n, ref: registry.Ref(fmt.Sprintf("naive:v%d", i)), config: config, image: f}
			const pulls = 25
			accepted := 0
			for range pulls {
				accepted += p.once(t)
			}
			t.Logf("naive decoder: %s, %s: accepted in %d of %d pulls", f.of, f.name, accepted, pulls)
		}
	})
}

// once returns 1 if the forged image is accepted, and removes it from the node.
func (p *puller) once(t *testing.T) (accepted int) {
	t.Helper()
	ctx, c := namespaces.WithNamespace(t.Context(), p.Namespace()), p.Client(t)
	err := p.pull(ctx, c)
	there, statErr := p.committed(ctx, c)
	if there != (err == nil) || statErr != nil {
		t.Errorf("pulled: %v, committed: %v, %v", err, there, statErr)
	}
	p.Clean(t)
	if there {
		return 1
	}
	return 0
}

// clientConfig is what a client with this key sends.
func clientConfig(t testing.TB, k keyPair) *encconfig.DecryptConfig {
	t.Helper()
	private, err := os.ReadFile(k.private)
	if err != nil {
		t.Fatal(err)
	}
	return &encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {private}, "privkeys-passwords": {nil}}}
}

// TestForgedImagesCtrEnc has ctr-enc's users pull and run forged images.
func TestForgedImagesCtrEnc(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, "runc")
	registry, k := testregistry.Start(t), ecKeys(t)
	victims := newVictims(t, k)
	var images []*forged
	for i, how := range forgeries() {
		images = append(images, victims[how.of].forge(t, how, 0))
		registry.PushDescriptor(t, string(images[i].victim.layout), images[i].desc, fmt.Sprintf("app:v%d", i))
	}
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		for i, f := range images {
			ref := registry.Ref(fmt.Sprintf("app:v%d", i))
			for _, args := range [][]string{
				{"images", "pull", "--key", k.private, ref},
				{"images", "pull", "--local", "--key", k.private, ref},
			} {
				r := n.enc(args...)
				if r.Code != 1 {
					t.Errorf("%s, %s: not refused:\n%s", f.of, f.name, r)
				}
				if !strings.Contains(r.Stderr, "tampered") {
					t.Errorf("%s, %s: does not say \"tampered\":\n%s", f.of, f.name, r)
				}
			}
			if left := n.leftovers(t); len(left) > 0 {
				t.Errorf("%s, %s: left behind: %v", f.of, f.name, left)
			}
		}
		if count := n.snapshots(t); count > 0 {
			t.Errorf("%d snapshots were committed", count)
		}
	})
}
