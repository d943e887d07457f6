package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	encconfig "github.com/containers/ocicrypt/config"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
	"imgcrypt/layer"
)

func otherMAC(options map[string]any) { options["hmac"] = make([]byte, sha256.Size) }

// forgeries are what whoever controls a registry can make of an image: every digest
// is right, only the MAC cannot be.
func forgeries() []forgery {
	flip := func(at func(n int) int) func(*victim) []byte {
		return func(v *victim) []byte {
			b := append([]byte(nil), v.sealed...)
			b[at(len(b))] ^= 1
			return b
		}
	}
	first := flip(func(int) int { return 0 })
	middle := flip(func(n int) int { return n / 2 })
	last := flip(func(n int) int { return n - 1 })
	shorter := func(by int) func(*victim) []byte {
		return func(v *victim) []byte { return v.sealed[:len(v.sealed)-by] }
	}
	longer := func(by int) func(*victim) []byte {
		return func(v *victim) []byte { return append(v.sealed[:len(v.sealed):len(v.sealed)], make([]byte, by)...) }
	}
	short := func(m map[string]any) { m["hmac"] = make([]byte, sha256.Size-1) }
	missing := func(m map[string]any) { delete(m, "hmac") }
	return []forgery{
		{name: "forged, complete in what is released", of: "large", bytes: evil(0), diffID: released},
		{name: "forged, complete in what is released", of: "large gzip", bytes: evil(0), diffID: released},
		{name: "forged, complete in what is released", of: "large zstd", bytes: evil(0), diffID: released},
		{name: "forged, all of it", of: "large", bytes: evil(0), diffID: whole},
		{name: "forged, all of it", of: "small", bytes: evil(0), diffID: whole},
		{name: "forged, all of it", of: "small gzip", bytes: evil(0), diffID: whole},
		{name: "first bit", of: "large", bytes: first},
		{name: "first bit, diff id of what is released", of: "large", bytes: first, diffID: released},
		{name: "first bit, diff id of all", of: "small", bytes: first, diffID: whole},
		{name: "first bit, empty diff id", of: "small gzip", bytes: first, diffID: empty},
		{name: "middle bit", of: "large", bytes: middle},
		{name: "middle bit, diff id of what is released", of: "large", bytes: middle, diffID: released},
		{name: "middle bit, diff id of all", of: "small", bytes: middle, diffID: whole},
		{name: "last bit", of: "large", bytes: last},
		{name: "last bit, diff id of what is released", of: "large", bytes: last, diffID: released},
		{name: "last bit, diff id of all", of: "small", bytes: last, diffID: whole},
		{name: "truncated by a byte, diff id of what is released", of: "large", bytes: shorter(1), diffID: released},
		{name: "truncated, diff id of all", of: "small", bytes: shorter(512), diffID: whole},
		{name: "truncated to a byte, empty diff id", of: "small", bytes: func(v *victim) []byte { return v.sealed[:1] }, diffID: empty},
		{name: "truncated to what is released of it", of: "large", bytes: shorter(layer.Holdback), diffID: released},
		{name: "extended by a byte, diff id of what is released", of: "large", bytes: longer(1), diffID: released},
		{name: "extended, diff id of all", of: "small", bytes: longer(512), diffID: whole},
		{name: "MAC altered", of: "small", mac: otherMAC},
		{name: "MAC altered, empty diff id", of: "small", mac: otherMAC, diffID: empty},
		{name: "MAC altered, diff id of what is released", of: "large", mac: otherMAC, diffID: released},
		{name: "MAC missing", of: "small", mac: missing},
		{name: "MAC missing, empty diff id", of: "large", mac: missing, diffID: empty},
		{name: "MAC short, empty diff id", of: "small", mac: short, diffID: empty},
	}
}

// forgedPulls is how often each forged image is pulled.
func forgedPulls() int {
	if testing.Short() {
		return 5
	}
	return 50
}

// holder has the right key for an image, at one of the two places where a key can be.
type holder struct {
	name string
	// pulls is how often each forged image is pulled.
	pulls int
	// config is what the client sends; nil: nothing, and the node has the key.
	config *encconfig.DecryptConfig
	images []*forged
	intact []*forged
}

// newHolders makes the forged images for a client's key and for a node's, and pushes them.
func newHolders(t *testing.T, registry *testregistry.Registry, sent, kept keyPair) []*holder {
	t.Helper()
	holders := []*holder{{name: "client's key", pulls: forgedPulls(), config: clientConfig(t, sent)}, {name: "node's key", pulls: forgedPulls() / 5}}
	for i, k := range []keyPair{sent, kept} {
		h, victims := holders[i], newVictims(t, k)
		for _, how := range forgeries() {
			h.images = append(h.images, victims[how.of].forge(t, how, 0))
		}
		for kind, v := range victims {
			h.intact = append(h.intact, v.forge(t, forgery{name: "intact", of: kind}, 0))
		}
		for j, f := range append(h.intact, h.images...) {
			registry.PushDescriptor(t, string(f.victim.layout), f.desc, f.tag(i, j))
		}
	}
	return holders
}

// tag is the name in the registry.
func (f *forged) tag(holder, number int) string { return fmt.Sprintf("app%d:v%d", holder, number) }

// TestForgedImages pulls images that were forged on the way, with the right key.
func TestForgedImages(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, "runc", testregistry.DockerRegistry)
	registry := testregistry.StartDebian(t)
	sent, kept := ecKeys(t), rsaKeys(t)
	holders := newHolders(t, registry, sent, kept)
	onEach(t, testnode.Config{KeysDir: filepath.Dir(kept.private)}, func(t *testing.T, n *node) {
		for i, h := range holders {
			for j, f := range append(h.intact, h.images...) {
				p := &puller{node: n, ref: registry.Ref(f.tag(i, j)), config: h.config, image: f}
				if j < len(h.intact) {
					p.accepted(t)
					continue
				}
				t.Run(h.name+"/"+f.of+"/"+f.name, func(t *testing.T) { p.refused(t, h.pulls) })
			}
		}
	})
}

// puller pulls one image as a client of containerd does that uses this module.
type puller struct {
	*node
	ref    string
	config *encconfig.DecryptConfig
	image  *forged
}

// pull pulls and unpacks.
func (p *puller) pull(ctx context.Context, c *containerd.Client) error {
	_ = log.SetLevel("fatal") // containerd's client logs each of the thousands of failures
	payload := &imgcrypt.Payload{}
	if p.config != nil {
		payload.DecryptConfig = *p.config
	}
	unpack := encryption.WithUnpackConfigApplyOpts(encryption.WithDecryptedUnpack(payload))
	_, err := c.Pull(ctx, p.ref, containerd.WithPullUnpack, containerd.WithPullSnapshotter(p.Snapshotter()),
		encryption.WithUnpackOpts([]containerd.UnpackOpt{unpack}))
	return err
}

// committed says whether there is a snapshot of the image's layer.
func (p *puller) committed(ctx context.Context, c *containerd.Client) (bool, error) {
	_, err := c.SnapshotService(p.Snapshotter()).Stat(ctx, p.image.chainID)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// accepted pulls an image with which everything is in order, and removes it.
func (p *puller) accepted(t *testing.T) {
	t.Helper()
	ctx, c := namespaces.WithNamespace(t.Context(), p.Namespace()), p.Client(t)
	if err := p.pull(ctx, c); err != nil {
		t.Errorf("%s, intact: %v", p.image.of, err)
	}
	if ok, err := p.committed(ctx, c); !ok || err != nil {
		t.Errorf("%s, intact: not committed, %v", p.image.of, err)
	}
	p.Clean(t)
}

// outcomes counts what became of pulls.
type outcomes struct {
	mu sync.Mutex
	// said counts those that said "tampered", errs has each other error once.
	pulls, refused, said int
	errs                 map[string]int
}

func (o *outcomes) add(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pulls++
	if err == nil {
		return
	}
	o.refused++
	if strings.Contains(err.Error(), "tampered") {
		o.said++
		return
	}
	if o.errs == nil {
		o.errs = make(map[string]int)
	}
	text := err.Error()
	o.errs[text[strings.LastIndex(text, ": ")+1:]]++
}

// refused pulls a forged image many times: the first times with nothing of it on the node, then with
// its content there.
func (p *puller) refused(t *testing.T, pulls int) {
	start := time.Now()
	ctx, c := namespaces.WithNamespace(t.Context(), p.Namespace()), p.Client(t)
	var o outcomes
	const fresh, parallel = 2, 4
	for range min(pulls, fresh) {
		p.removeContent(ctx, t, c)
		o.add(p.pull(ctx, c))
	}
	leased, done, err := c.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for range max(0, pulls-fresh) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			o.add(p.pull(leased, c))
			if there, err := p.committed(ctx, c); there || err != nil {
				t.Errorf("the forged layer was committed, %v", err)
			}
		})
	}
	wg.Wait()
	p.explained(leased, t, c)
	if err := done(leased); err != nil {
		t.Fatal(err)
	}
	t.Logf("refused in %d of %d pulls, %d times as tampered, in %v", o.refused, o.pulls, o.said, time.Since(start).Round(time.Millisecond))
	for text, times := range o.errs {
		t.Logf("%d times: %s", times, text)
	}
	if o.refused != o.pulls || o.pulls != pulls {
		t.Errorf("accepted in %d of %d pulls", o.pulls-o.refused, pulls)
	}
	if !p.image.breaksOff() && o.said != o.refused {
		t.Errorf("%d of %d refusals do not say \"tampered\"", o.refused-o.said, o.refused)
	}
	p.leavesNothing(t)
	if count := p.snapshots(t); count > 0 {
		t.Errorf("%d snapshots were committed", count)
	}
}

// explained fails the test unless a client that has the key can tell from the content why its pull was refused,
// also where containerd gave up before it asked the decoder.
func (p *puller) explained(ctx context.Context, t *testing.T, c *containerd.Client) {
	t.Helper()
	if p.config == nil {
		return
	}
	ids, err := encryption.Identities(p.config)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("unexpected EOF")
	err = encryption.ExplainUnpack(ctx, c.ContentStore(), p.image.desc, ids, platforms.All, cause)
	if !errors.Is(err, layer.ErrTampered) || !errors.Is(err, cause) {
		t.Errorf("the content is not seen to be forged: %v", err)
	}
}

// removeContent removes all content from the node.
func (p *puller) removeContent(ctx context.Context, t *testing.T, c *containerd.Client) {
	t.Helper()
	cs := c.ContentStore()
	err := cs.Walk(ctx, func(info content.Info) error {
		if err := cs.Delete(ctx, info.Digest); !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
