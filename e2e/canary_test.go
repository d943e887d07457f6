package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	encconfig "github.com/containers/ocicrypt/config"
	keyproviderconfig "github.com/containers/ocicrypt/config/keyprovider-config"
	"github.com/containers/ocicrypt/keywrap/keyprovider"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testprovider"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// secretKeeper is a user all of whose secrets are canaries.
type secretKeeper struct {
	*testkeys.User
	secrets *canaries
	// typed are the secrets that are written on command lines.
	typed []string
	dir   string
	// holders open images, by what they are called, each with one key.
	holders map[string]testkeys.Holder
	// a is a provider that is a command, b one that is a service with TLS.
	a, b *testprovider.Provider
	// wrong is a key pair that is nobody's, plain a private key without password, locked one with it.
	wrong, plain   keyPair
	locked, old    string
	password, yaml string
	tokenYAML      string   // of a file with the PIN that the token had
	other          string   // recipient
	extra          []string // environment
	// echoing are the providers that tell what they are told, beside a and b.
	echoing []string
}

func newSecretKeeper(t *testing.T) *secretKeeper {
	t.Helper()
	s := &secretKeeper{User: testkeys.NewUser(t), secrets: newCanaries(), dir: t.TempDir(), holders: make(map[string]testkeys.Holder)}
	c := s.secrets
	s.wrong, s.plain = ecKeys(t), rsaKeys(t)
	c.keyFile(t, "the wrong key", s.wrong.private, "")
	c.keyFile(t, "the private key", s.plain.private, "")

	password := c.word(t, "the password")
	s.password, s.locked, s.old = s.file(t, "password", password), filepath.Join(s.dir, "locked.pem"), filepath.Join(s.dir, "old.pem")
	openssl(t, "pkcs8", "-topk8", "-in", s.plain.private, "-passout", "file:"+s.password, "-out", s.locked)
	openssl(t, "rsa", "-in", s.plain.private, "-traditional", "-aes256", "-passout", "file:"+s.password, "-out", s.old)
	c.keyFile(t, "the locked private key", s.locked, password)
	c.keyFile(t, "the old private key", s.old, password)
	s.holders["jwe"] = testkeys.Holder{Recipient: s.plain.recipient(), Keys: []string{s.locked + ":file=" + s.password}}

	s.holders["pkcs7"] = s.PKCS7(t)
	c.keyFile(t, "the key of the certificate", s.holders["pkcs7"].Files[0], "")

	s.holders["keyring"] = s.PGP(t, "")
	c.keyring(t, "the keyring", s.holders["keyring"].Files[0], "")
	passphrase := s.typedWord(t, "the passphrase")
	s.holders["pgp"] = s.PGP(t, passphrase)
	c.keyring(t, "the locked keyring", s.holders["pgp"].Files[0], passphrase)

	s.other = s.PKCS7(t).Recipient
	s.token(t)
	s.providers(t)
	return s
}

// typedWord makes a secret that is written on a command line.
func (s *secretKeeper) typedWord(t *testing.T, name string) string {
	t.Helper()
	s.typed = append(s.typed, name)
	return s.secrets.word(t, name)
}

// file writes a file.
func (s *secretKeeper) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	writeFile(t, path, []byte(content))
	return path
}

// token makes a token whose PIN no other test has, since others have theirs on command lines.
func (s *secretKeeper) token(t *testing.T) {
	t.Helper()
	s.holders["pkcs11"] = s.PKCS11(t, testsofthsm.Options{})
	token, pin := s.Token(), s.secrets.word(t, "the PIN")
	cmd := exec.Command("pkcs11-tool", "--module", token.Module, "--token-label", token.Label, "--login", "--pin", token.PIN, "--change-pin", "--new-pin", pin)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := s.holders["pkcs11"]
	s.tokenYAML = string(readFile(t, h.Files[0]))
	s.yaml = s.tokenFile(t, "token.yaml", token.Module, pin)
	h.Keys, h.Files = []string{s.yaml}, []string{s.yaml}
	s.holders["pkcs11"] = h
}

// tokenFile writes a key file with a PIN, and a variable for the module that is as secret.
func (s *secretKeeper) tokenFile(t *testing.T, name, module, pin string) string {
	t.Helper()
	text := strings.NewReplacer(s.Token().PIN, pin, s.Token().Module, module).Replace(s.tokenYAML)
	return s.file(t, name, text+"    MODULE_PASSWORD: "+s.secrets.word(t, "the module's password in "+name)+"\n")
}

func (s *secretKeeper) providers(t *testing.T) {
	t.Helper()
	s.a = testprovider.New(t, testprovider.Options{Name: "a", Seed: "a"})
	s.b = testprovider.New(t, testprovider.Options{Name: "b", Seed: "b", Transport: testprovider.GRPC, ClientCert: true})
	s.secrets.keyFile(t, "the key for TLS", s.b.Entry.TLS.KeyFile, "")
	for name, p := range map[string]*testprovider.Provider{"parameter of a": s.a, "parameter of b": s.b} {
		key := "provider:" + p.Name + ":" + s.typedWord(t, name)
		s.holders[p.Name] = testkeys.Holder{Recipient: key, Keys: []string{key}}
	}
	s.extra = []string{schemes.EnvProviderConfig + "=" + testprovider.WriteConfig(t, s.a, s.b), schemes.EnvProviderTimeout + "=20s"}
}

// env is the environment of ctr-enc.
func (s *secretKeeper) env() []string { return append(s.Env(), s.extra...) }

// keys returns the flags for the keys of all holders, that of last at the end. The keyring needs none, and opens what
// no other key does.
func (s *secretKeeper) keys(last string) []string {
	var all []string
	if last == "keyring" {
		return all
	}
	for _, name := range s.names() {
		if name != last && name != "keyring" {
			all = append(all, flags("--key", s.holders[name].Keys)...)
		}
	}
	return append(all, flags("--key", s.holders[last].Keys)...)
}

// names are those of the holders, sorted.
func (s *secretKeeper) names() []string {
	var all []string
	for name := range s.holders {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// layerSecrets are what a provider was asked to wrap.
func layerSecrets(t testing.TB, requests ...string) *canaries {
	t.Helper()
	c := newCanaries()
	for _, text := range requests {
		var r struct {
			Params struct {
				Secret []byte `json:"optsdata"`
			} `json:"keywrapparams"`
		}
		unmarshal(t, []byte(text), &r)
		if r.Params.Secret == nil {
			continue
		}
		secret, err := layer.ParseSecret(r.Params.Secret)
		if err != nil {
			t.Fatal(err)
		}
		var fields struct {
			Key string `json:"symkey"`
		}
		unmarshal(t, r.Params.Secret, &fields)
		c.add("the secret of a layer", secret.Key[:], []byte(fields.Key))
	}
	if len(c.names) == 0 {
		t.Fatal("nobody was asked to wrap anything")
	}
	return c
}

// debugLog has containerd log all that it has to say.
const debugLog = "[debug]\nlevel = \"debug\"\n"

// Whatever is done with keys, and whatever goes wrong, nothing secret is where it does not belong.
func TestCanaries(t *testing.T) {
	t.Parallel()
	s := newSecretKeeper(t)
	situations := s.situations(t)
	payloads := s.payloads(t)
	w := watch(t, s.secrets, map[string][]string{"ctr-enc": s.typed, "false": {"the password of a provider"}}) // which the configuration gives it
	nodeKeys := s.nodeKeys(t)
	t.Run("nodes", func(t *testing.T) {
		for _, version := range testnode.Versions() {
			t.Run("containerd "+string(version), func(t *testing.T) {
				t.Parallel()
				n := startNode(t, testnode.Config{Version: version, ExtraTOML: debugLog, KeysDir: nodeKeys, DecoderEnv: append(s.NodeEnv(), s.extra...)})
				n.env = append(s.env(), "TMPDIR="+filepath.Join(n.Dir(), "tmp"))
				s.all(t, n)
				for _, situation := range situations {
					s.fails(t, n, situation)
				}
				// Until the watcher has seen one of each kind of program.
				for deadline := time.Now().Add(time.Minute); len(w.missing("ctr-enc", "ctd-decoder", "gpg", "imgcrypt-pkcs11", "testprovider")) > 0 && time.Now().Before(deadline); {
					s.again(t, n)
				}
				log := n.Log()
				if !strings.Contains(log, "level=debug") {
					t.Errorf("no debug log:\n%.5000s", log)
				}
				s.secrets.absent(t, "log", log)
				layerSecrets(t, s.a.Requests(t)...).absent(t, "log", log)
				s.secrets.inFiles(t, n.Dir())
			})
		}
		t.Run("payloads", func(t *testing.T) {
			t.Parallel()
			s.sends(t)
		})
		t.Run("ocicrypt", func(t *testing.T) {
			t.Parallel()
			s.byOcicrypt(t)
		})
		t.Run("decoder", func(t *testing.T) {
			t.Parallel()
			s.payloadsFail(t, payloads)
		})
	})
	w.stop()
	for _, leak := range w.found() {
		t.Error(leak)
	}
	if missing := w.missing("ctr-enc", "ctd-decoder", "gpg", "imgcrypt-pkcs11", "testprovider"); len(missing) > 0 {
		t.Errorf("the watcher has not seen %q", missing)
	}
	s.checkRequests(t)
}

// checkRequests fails the test unless each provider got its own parameter, and no secret beside it.
func (s *secretKeeper) checkRequests(t *testing.T) {
	t.Helper()
	for own, p := range map[string]*testprovider.Provider{"parameter of a": s.a, "parameter of b": s.b} {
		for _, request := range p.Requests(t) {
			s.secrets.absent(t, "provider "+p.Name, request, own)
		}
		if all := strings.Join(p.Requests(t), "\n"); !slices.Contains(s.secrets.in([]byte(all)), own) {
			t.Errorf("provider %s got no parameter: %s", p.Name, all)
		}
	}
}

// all encrypts for all, and opens by each, with the keys of all given.
func (s *secretKeeper) all(t *testing.T, n *node) {
	t.Helper()
	n.load(t, runnable(t), plainName)
	encrypt := []string{"--debug", "images", "encrypt"}
	for _, name := range s.names() {
		recipient := []string{"--recipient", s.holders[name].Recipient}
		encrypt = append(encrypt, recipient...)
		s.quiet(t, n.enc(slices.Concat([]string{"images", "encrypt"}, recipient, []string{plainName, "for:" + name})...).OK(t))
		s.quiet(t, n.enc(slices.Concat([]string{"--debug", "images", "decrypt"}, s.keys(name), []string{"for:" + name, "by:" + name})...).OK(t))
	}
	s.quiet(t, n.enc(append(encrypt, plainName, encName)...).OK(t))
	archive := filepath.Join(t.TempDir(), "image.tar")
	n.enc("images", "export", archive, encName).OK(t)
	unpacked := func(flags ...string) {
		n.Clean(t)
		n.enc("images", "import", "--no-unpack", archive).OK(t)
		s.quiet(t, n.run(flags, encName).OK(t))
	}
	// From here, and by what the node has.
	unpacked(s.keys("pkcs11")...)
	unpacked("--skip-decrypt-auth")
	n.Clean(t)
	n.enc("images", "import", "--no-unpack", archive).OK(t)
	n.load(t, testimage.Spec{}, plainName)
	n.enc("images", "encrypt", "--recipient", ecKeys(t).recipient(), "--recipient", s.other, plainName, "stranger").OK(t)
	n.relabel(t, "stranger", func(annotations map[string]string) {
		for _, name := range s.echoing {
			scheme := "provider." + name
			annotations[layer.KeysAnnotationPrefix+scheme] = layer.AddPacket("", layer.Packet{Scheme: scheme, Data: []byte("x")})
		}
	})
}

// again does what takes programs that the watcher has to see.
func (s *secretKeeper) again(t *testing.T, n *node) {
	t.Helper()
	for _, name := range []string{"keyring", "pkcs11", "a"} {
		s.quiet(t, n.enc(slices.Concat([]string{"images", "decrypt"}, flags("--key", s.holders[name].Keys), []string{encName, "again"})...).OK(t))
	}
}

// quiet fails the test if a command has printed a secret.
func (s *secretKeeper) quiet(t *testing.T, r testnode.Result) {
	t.Helper()
	s.secrets.absent(t, "output of "+strings.Join(r.Command[:3], " "), r.Stdout+r.Stderr)
}

// situation is a command line that fails.
type situation struct {
	name string
	args []string
	env  []string
	// requests is a directory where a provider keeps what it was asked.
	requests string
}

func (s *secretKeeper) fails(t *testing.T, n *node, c situation) {
	t.Helper()
	r := n.with(append(slices.Clone(n.env), c.env...)).enc(c.args...)
	if r.Code != 1 || r.Stderr == "" || strings.Contains(r.Stderr, "panic") {
		t.Errorf("%s: %s", c.name, r)
	}
	s.secrets.absent(t, c.name, r.Stdout+r.Stderr)
	if c.requests != "" {
		layerSecrets(t, s.kept(t, c.requests)...).absent(t, c.name, r.Stdout+r.Stderr)
	}
}

// kept returns the requests in a directory.
func (s *secretKeeper) kept(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, file := range files {
		if data := readFile(t, file); json.Valid(data) {
			all = append(all, string(data))
		}
	}
	return all
}

// byOcicrypt has ocicrypt's own client ask a provider, which gets everything: what these tests would find.
func (s *secretKeeper) byOcicrypt(t *testing.T) {
	t.Helper()
	var arguments [][]byte
	for _, name := range []string{"a", "b"} {
		arguments = append(arguments, []byte(strings.TrimPrefix(s.holders[name].Recipient, "provider:")))
	}
	encrypt, err := encconfig.EncryptWithKeyProvider(arguments)
	if err != nil {
		t.Fatal(err)
	}
	decrypt, err := encconfig.DecryptWithPrivKeys([][]byte{readFile(t, s.locked)}, [][]byte{readFile(t, s.password)})
	if err != nil {
		t.Fatal(err)
	}
	all := encconfig.CombineCryptoConfigs([]encconfig.CryptoConfig{encrypt, decrypt})
	p := testprovider.New(t, testprovider.Options{Name: "a"})
	var attrs keyproviderconfig.KeyProviderAttrs
	unmarshal(t, marshal(t, p.Entry), &attrs)
	if _, err := keyprovider.NewKeyWrapper("a", attrs).WrapKeys(all.EncryptConfig, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	found := s.secrets.in([]byte(strings.Join(p.Requests(t), "\n")))
	if want := []string{"parameter of a", "parameter of b", "the locked private key", "the password"}; !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}
