package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testprovider"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// providerFault is a key provider, or a configuration of key providers, that is of no use.
type providerFault struct {
	name string
	// config returns the content of the configuration file; nil means that there is no file.
	config func(t *testing.T) []byte
	// hangs says that nothing but the deadline ends it.
	hangs bool
	// unconfigured says that it is found out without asking the provider.
	unconfigured bool
	// large says that it moves a lot of data, so that it is not asked often.
	large bool
	// says is what errors say, beside the provider's name; a regular expression.
	says string
}

// The deadline of providers that hang, and what a command may take beyond it on a busy machine. Providers that do not
// hang are given a minute, which none of them needs.
const (
	hangTimeout  = time.Second
	faultSlack   = 15 * time.Second
	otherTimeout = time.Minute
)

func (f providerFault) timeout() time.Duration {
	if f.hangs {
		return hangTimeout
	}
	return otherTimeout
}

// write writes the configuration, if there is one, and returns the environment that leads to it, and marks processes.
func (f providerFault) write(t *testing.T, mark string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "providers.conf")
	if f.config != nil {
		writeFile(t, path, f.config(t))
	}
	return []string{schemes.EnvProviderConfig + "=" + path, schemes.EnvProviderTimeout + "=" + f.timeout().String(), markEnv + "=" + mark}
}

// faultNode is a containerd with an image that is encrypted for the provider "vault" and for the keys good.
type faultNode struct {
	*node
	good, wrong keyPair
	decoder     string
	layer       ocispec.Descriptor
	sealed      []byte
}

func newFaultNode(t *testing.T, cfg testnode.Config) *faultNode {
	t.Helper()
	n := &faultNode{node: startNode(t, cfg), good: ecKeys(t), wrong: rsaKeys(t), decoder: testenv.Build(t, "./cmd/ctd-decoder")}
	vault := testprovider.New(t, testprovider.Options{})
	healthy := n.with([]string{schemes.EnvProviderConfig + "=" + vault.File})
	healthy.loadEncrypted(t, runnable(t), "--recipient", n.good.recipient(), "--recipient", "provider:vault")
	n.load(t, testimage.Spec{Salt: t.Name()}, plainName)
	n.layer, n.sealed = n.firstLayer(t, encName)
	return n
}

// manifest reads an image of one manifest.
func (n *node) manifest(t testing.TB, name string) (m ocispec.Manifest) {
	t.Helper()
	ctx, client := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t)
	img, err := client.ImageService().Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(ctx, client.ContentStore(), img.Target)
	if err != nil {
		t.Fatal(err)
	}
	unmarshal(t, data, &m)
	return m
}

// firstLayer returns the first layer of an image of one manifest.
func (n *node) firstLayer(t testing.TB, name string) (ocispec.Descriptor, []byte) {
	t.Helper()
	desc := n.manifest(t, name).Layers[0]
	data, err := content.ReadBlob(namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t).ContentStore(), desc)
	if err != nil {
		t.Fatal(err)
	}
	return desc, data
}

// relabel changes the annotations of the layers of an image of one manifest.
func (n *node) relabel(t testing.TB, name string, edit func(annotations map[string]string)) {
	t.Helper()
	client := n.Client(t)
	// What has no name yet would be collected when another command ends.
	ctx, done, err := client.WithLease(namespaces.WithNamespace(t.Context(), n.Namespace()))
	if err != nil {
		t.Fatal(err)
	}
	defer done(context.WithoutCancel(ctx))
	m := n.manifest(t, name)
	for _, l := range m.Layers {
		edit(l.Annotations)
	}
	desc, err := encryption.NewStore(client.ContentStore()).Put(ctx, ocispec.Descriptor{MediaType: m.MediaType}, bytes.NewReader(marshal(t, m)),
		append([]ocispec.Descriptor{m.Config}, m.Layers...)...)
	if err == nil {
		err = encryption.NewTags(client.ImageService()).Tag(ctx, name, desc)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// check fails the test unless text is about the provider and says what it should.
func (f providerFault) check(t *testing.T, what, text string) {
	t.Helper()
	for _, says := range []string{`\bprovider:? "?vault\b|\bprovider\.vault\b`, f.says} {
		if !regexp.MustCompile(says).MatchString(text) {
			t.Errorf("%s: nothing of %q in %q", what, says, text)
		}
	}
	if len(text) > 1500 {
		t.Errorf("%s: %d bytes", what, len(text))
	}
}

// inTime runs what has to end by the deadline of one provider, or of several that are asked one after the other.
func (f providerFault) inTime(t *testing.T, what string, work func() testnode.Result) testnode.Result {
	t.Helper()
	begin := time.Now()
	r := work()
	limit := faultSlack
	if f.hangs {
		limit += hangTimeout
	}
	if took := time.Since(begin); took > limit {
		t.Errorf("%s took %v", what, took)
	}
	return r
}

// Whatever a provider does, who needs it is told in time, in one line that names it, and other keys are tried.
func TestProviderFaults(t *testing.T) {
	t.Parallel()
	n := newFaultNode(t, testnode.Config{})
	t.Run("faults", func(t *testing.T) {
		for i, f := range providerFaults() {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				n.suffers(t, f, i)
			})
		}
	})
	n.leavesNothing(t)
}

// suffers does with a faulty provider all that needs one, and what does not, at the same time.
func (n *faultNode) suffers(t *testing.T, f providerFault, number int) {
	t.Helper()
	mark := fmt.Sprintf("%s-%d", n.Namespace(), number)
	env := f.write(t, mark)
	client := n.with(env)
	result := fmt.Sprintf("example.test/fault:%d", number)
	run := func(args ...string) func() testnode.Result {
		return func() testnode.Result {
			return f.inTime(t, strings.Join(args[:2], " "), func() testnode.Result { return client.enc(args...) })
		}
	}
	decoder := func(args ...string) func() testnode.Result {
		payload := payloadOf(t, imgcrypt.Payload{Descriptor: n.layer})
		return func() testnode.Result {
			return f.inTime(t, "ctd-decoder", func() testnode.Result { return decode(t, n.decoder, env, payload, n.sealed, args...) })
		}
	}
	named := []string{"--key", "provider:vault"}
	if f.unconfigured {
		named = nil // Who names it is told before anything else is tried.
	}
	uses := map[string]func() testnode.Result{
		"as recipient":            run("images", "encrypt", "--recipient", "provider:vault", plainName, result),
		"to decode":               decoder(),
		"to decode, with a key":   decoder("--decryption-keys-path", filepath.Dir(n.good.private)),
		"beside a wrong key":      run(slices.Concat([]string{"images", "decrypt"}, named, []string{"--key", n.wrong.private, encName, result})...),
		"beside a key that opens": run(slices.Concat([]string{"images", "decrypt"}, named, []string{"--key", n.good.private, encName, result})...),
	}
	if f.unconfigured {
		uses["as key"] = run("images", "decrypt", "--key", n.good.private, "--key", "provider:vault", encName, result)
	}
	if f.common() {
		uses["as key to run"] = run("run", "--rm", "--key", "provider:vault", encName, "e2e")
	}
	if f.large {
		maps.DeleteFunc(uses, func(use string, _ func() testnode.Result) bool { return strings.HasPrefix(use, "beside") })
	}
	for use, r := range together(uses) {
		switch use {
		case "to decode, with a key", "beside a key that opens":
			r.OK(t)
		case "to decode":
			if r.Code != 10 || strings.Count(r.Stderr, "\n") != 1 || !strings.HasPrefix(r.Stderr, "ctd-decoder: error: layer "+n.layer.Digest.String()) || r.Stdout != "" {
				t.Errorf("%s: %s", use, r)
			}
			f.check(t, use, r.Stderr)
		case "beside a wrong key":
			f.beside(t, r, n.wrong.private)
		default:
			refused(t, r)
			f.check(t, use, r.Stderr)
		}
	}
	leavesNoProcess(t, mark)
}

// beside looks at an error about two keys: each has a line of its own.
func (f providerFault) beside(t *testing.T, r testnode.Result, wrong string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.Stderr), "\n")
	slices.Sort(lines[min(len(lines), 1):])
	if r.Code != 1 || len(lines) != 3 || !strings.Contains(lines[1], wrong+": not for this key") {
		t.Errorf("got %s", r)
		return
	}
	f.check(t, "beside a wrong key", lines[2])
}

// The same for a containerd whose decoder asks the provider: what it says reaches the user.
func TestProviderFaultsOfANode(t *testing.T) {
	t.Parallel()
	conf := func(t *testing.T) string { return filepath.Join(t.TempDir(), "providers.conf") }
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			conf, mark := conf(t), "node "+string(version)+t.TempDir()
			n := newFaultNode(t, testnode.Config{Version: version, DecoderEnv: []string{
				schemes.EnvProviderConfig + "=" + conf, schemes.EnvProviderTimeout + "=" + (2 * hangTimeout).String(), markEnv + "=" + mark}})
			for _, f := range providerFaults() {
				if !f.common() {
					continue
				}
				t.Run(f.name, func(t *testing.T) {
					if err := os.RemoveAll(conf); err != nil {
						t.Fatal(err)
					}
					if f.config != nil {
						writeFile(t, conf, f.config(t))
					}
					r := f.inTime(t, "run", func() testnode.Result { return n.run([]string{"--skip-decrypt-auth"}, encName) })
					refused(t, r)
					f.check(t, "run", r.Stderr)
					n.leavesNothing(t)
					leavesNoProcess(t, mark)
				})
			}
		})
	}
}

// Who needs no provider does not notice that the configuration is missing or broken, neither as client nor as node.
func TestBrokenProviderConfiguration(t *testing.T) {
	t.Parallel()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			keys, dir := ecKeys(t), t.TempDir()
			conf := filepath.Join(dir, "providers.conf")
			env := []string{schemes.EnvProviderConfig + "=" + conf}
			n := startNode(t, testnode.Config{Version: version, DecoderEnv: env, KeysDir: filepath.Dir(keys.private)})
			n.env = env
			for name, write := range map[string]func() error{
				"missing":   func() error { return nil },
				"malformed": func() error { return os.WriteFile(conf, []byte("key-providers: }{"), 0o600) },
				"directory": func() error { return os.Mkdir(conf, 0o700) },
				"loop":      func() error { return os.Symlink(conf, conf) },
			} {
				if err := errorsOf(os.RemoveAll(conf), write()); err != nil {
					t.Fatal(err)
				}
				n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
				for what, flags := range map[string][]string{"sent": {"--key", keys.private}, "of the node": {"--skip-decrypt-auth"}} {
					if r := n.run(flags, encName); r.Code != 0 || r.Stdout != hello || r.Stderr != "" {
						t.Errorf("%s, key %s: %s", name, what, r)
					}
				}
				r := n.enc("images", "decrypt", "--key", keys.private, encName).OK(t)
				if r.Stderr != "" {
					t.Errorf("%s: %s", name, r)
				}
				n.enc("images", "layerinfo", encName).OK(t)
				n.Clean(t)
			}
		})
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Anyone can write an image with many packets for a provider. They do not cost a deadline each, nor do many layers of
// a provider that does not answer.
func TestProviderFaultsTimesMany(t *testing.T) {
	t.Parallel()
	n := newFaultNode(t, testnode.Config{})
	t.Run("faults", func(t *testing.T) {
		for i, c := range []struct {
			providerFault
			layers int
		}{
			{providerFault{name: "hangs", config: script("exec sleep 3600"), hangs: true, says: "no answer within 1s"}, 30},
			{providerFault{name: "hanging service", config: service(func(net.Conn) {}), hangs: true, says: "no answer within 1s"}, 30},
			{providerFault{name: "not there", config: config(`{"cmd": {"path": "/no/such/program"}}`), says: "no such file"}, 12},
			{providerFault{name: "refuses", config: script("echo sealed >&2; exit 1"), says: "sealed.*not asked about more than 64 packets"}, 2},
			{providerFault{name: "refuses slowly", config: script("sleep 0.4; echo sealed >&2; exit 1"), hangs: true, says: "sealed.*not asked about more than [1-9] packets"}, 2},
			{providerFault{name: "talks nonsense slowly", config: script("sleep 0.4; echo nonsense"), hangs: true, says: "not the JSON.*not asked about more than [1-9] packets"}, 2},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				name := fmt.Sprintf("example.test/many:%d", i)
				n.loadMany(t, name, c.layers)
				n.suffersMany(t, c.providerFault, name)
			})
		}
	})
	n.leavesNothing(t)
}

// loadMany loads an image that the keys good open, with a thousand other packets for the provider in each layer.
func (n *faultNode) loadMany(t *testing.T, name string, layers int) {
	t.Helper()
	n.load(t, testimage.Spec{Salt: t.Name(), Layers: testimage.Layers(layers, testimage.None)}, name)
	n.enc("images", "encrypt", "--recipient", n.good.recipient(), name).OK(t)
	n.relabel(t, name, func(annotations map[string]string) {
		packets := ""
		for i := range 1000 {
			packets = layer.AddPacket(packets, layer.Packet{Scheme: "provider.vault", Data: fmt.Append(nil, "packet ", i)})
		}
		annotations[layer.KeysAnnotationPrefix+"provider.vault"] = packets
	})
}

func (n *faultNode) suffersMany(t *testing.T, f providerFault, name string) {
	t.Helper()
	mark := n.Namespace() + name
	env := f.write(t, mark)
	client := n.with(env)
	decrypt := func(keys ...string) func() testnode.Result {
		args := slices.Concat([]string{"images", "decrypt"}, keys, []string{name, name + "-opened"})
		return func() testnode.Result {
			return f.inTime(t, strings.Join(args, " "), func() testnode.Result { return client.enc(args...) })
		}
	}
	desc, sealed := n.firstLayer(t, name)
	payload := payloadOf(t, imgcrypt.Payload{Descriptor: desc})
	results := together(map[string]func() testnode.Result{
		"alone":        decrypt("--key", "provider:vault"),
		"beside a key": decrypt("--key", "provider:vault", "--key", n.good.private),
		"to decode": func() testnode.Result {
			return f.inTime(t, "ctd-decoder", func() testnode.Result { return decode(t, n.decoder, env, payload, sealed) })
		},
	})
	results["beside a key"].OK(t)
	for use, code := range map[string]int{"alone": 1, "to decode": 10} {
		r := results[use]
		if r.Code != code || code == 10 && strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: %s", use, r)
		}
		f.check(t, use, strings.ReplaceAll(r.Stderr, "\n", " "))
	}
	leavesNoProcess(t, mark)
}
