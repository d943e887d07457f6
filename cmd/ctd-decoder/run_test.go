package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/layer"
	"imgcrypt/streamproc"
)

func marshal(t testing.TB, p *imgcrypt.Payload) []byte {
	t.Helper()
	sent, err := typeurl.MarshalAny(p)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(typeurl.MarshalProto(sent))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fakeKeeper remembers what was asked of it.
type fakeKeeper struct {
	asked []string
	err   error
}

func (k *fakeKeeper) begin([]byte) error { k.asked = append(k.asked, "begin"); return k.err }
func (k *fakeKeeper) release()           { k.asked = append(k.asked, "release") }
func (k *fakeKeeper) fail()              { k.asked = append(k.asked, "fail") }

// ran is what came of a run with everything fake.
type ran struct {
	code     int
	out, err string
	keeper   *fakeKeeper
}

func runFake(args []string, in io.Reader, payload []byte) ran {
	var out, errOut bytes.Buffer
	k := &fakeKeeper{}
	code := run(args, stdio{
		in: in, out: &out, err: &errOut,
		payload: func() (io.ReadCloser, error) {
			if payload == nil {
				return nil, fmt.Errorf("%w: descriptor 3 is not open", streamproc.ErrNoPayload)
			}
			return io.NopCloser(iotest.OneByteReader(bytes.NewReader(payload))), nil
		},
		keep: func() (keeper, error) { return k, nil },
	})
	return ran{code, out.String(), errOut.String(), k}
}

func TestRun(t *testing.T) {
	t.Parallel()
	e, big := seal(t, 1000), seal(t, 3*layer.Holdback+100)
	other, _ := keyPair(t)
	withMAC := func(mac []byte) []byte {
		c := seal(t, 1000)
		c.desc.Annotations[layer.PublicAnnotation] = public64(t, mac)
		return marshal(t, c.payload(c.private))
	}
	noOptions := seal(t, 1000)
	delete(noOptions.desc.Annotations, layer.PublicAnnotation)
	noPackets := seal(t, 1000)
	noPackets.desc.Annotations = nil
	good := marshal(t, e.payload(e.private))
	sealed := e.sealed
	for _, tt := range []struct {
		name    string
		args    []string
		in      io.Reader
		payload []byte
		code    int
		says    string
	}{
		{"good", nil, bytes.NewReader(sealed), good, exitOK, ""},
		{"good, in halves", nil, iotest.HalfReader(bytes.NewReader(sealed)), good, exitOK, ""},
		{"good, second key", nil, bytes.NewReader(sealed), marshal(t, e.payload(other, e.private)), exitOK, ""},
		{"no payload", nil, bytes.NewReader(sealed), nil, exitFailure, "containerd sent no payload: descriptor 3 is not open: unpack with ctr-enc and --key"},
		{"empty payload", nil, bytes.NewReader(sealed), []byte{}, exitFailure, "containerd sent no payload: it is empty"},
		{"malformed payload", nil, bytes.NewReader(sealed), good[:len(good)-1], exitFailure, "malformed payload: cut off"},
		{"no key", nil, bytes.NewReader(sealed), marshal(t, e.payload()), exitNoKey, "no key was given to open it (encrypted for jwe)"},
		{"wrong key", nil, bytes.NewReader(sealed), marshal(t, e.payload(other)), exitNoKey, "the key does not open it"},
		{"two wrong keys", nil, bytes.NewReader(sealed), marshal(t, e.payload(other, []byte("garbage"))), exitNoKey, "none of the 2 keys opens it"},
		{"no packets", nil, bytes.NewReader(sealed), marshal(t, noPackets.payload(e.private)), exitFailure, "no packet"},
		{"no options", nil, bytes.NewReader(sealed), marshal(t, noOptions.payload(e.private)), exitTampered, "tampered: its MAC is missing"},
		{"MAC missing", nil, bytes.NewReader(sealed), withMAC(nil), exitTampered, "tampered: its MAC is missing"},
		{"MAC short", nil, bytes.NewReader(sealed), withMAC(make([]byte, 31)), exitTampered, "tampered"},
		{"MAC long", nil, bytes.NewReader(sealed), withMAC(make([]byte, 33)), exitTampered, "tampered"},
		{"MAC wrong", nil, bytes.NewReader(sealed), withMAC(make([]byte, 32)), exitTampered, "tampered"},
		{"first bit", nil, bytes.NewReader(flip(sealed, 0)), good, exitTampered, "tampered"},
		{"last bit", nil, bytes.NewReader(flip(sealed, 999)), good, exitTampered, "tampered"},
		{"big, first bit", nil, bytes.NewReader(flip(big.sealed, 0)), marshal(t, big.payload(big.private)), exitTampered, "tampered"},
		{"truncated", nil, bytes.NewReader(sealed[:999]), good, exitTampered, "tampered"},
		{"extended", nil, bytes.NewReader(append(bytes.Clone(sealed), 1)), good, exitTampered, "tampered"},
		{"nothing on stdin", nil, strings.NewReader(""), good, exitTampered, "tampered"},
		{"stdin fails", nil, iotest.ErrReader(errors.New("input/output error")), good, exitFailure, "input/output error"},
		{"stdin panics", nil, panicReader{}, good, exitFailure, "internal error: *errors.errorString at main_test.go:"},
		{"unknown option", []string{"--what"}, bytes.NewReader(sealed), good, exitUsage, "flag provided but not defined: -what"},
		{"option without value", []string{"--decryption-keys-path"}, bytes.NewReader(sealed), good, exitUsage, "needs an argument"},
		{"argument", []string{"--decryption-keys-path=x", "y\nz"}, bytes.NewReader(sealed), good, exitUsage, `unexpected argument "y\nz"`},
		{"keeper's number", []string{holdArg, "x", "true"}, bytes.NewReader(sealed), good, exitUsage, "not defined"},
		{"usage before payload", []string{"--what"}, bytes.NewReader(sealed), nil, exitUsage, "not defined"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := runFake(tt.args, tt.in, tt.payload)
			if got.code != tt.code {
				t.Errorf("exit code %d, want %d", got.code, tt.code)
			}
			last := got.keeper.asked[len(got.keeper.asked)-1]
			if tt.code == exitOK {
				if got.out != string(e.plain) || got.err != "" || last != "release" {
					t.Errorf("%d bytes, stderr %q, keeper %v", len(got.out), got.err, got.keeper.asked)
				}
				return
			}
			if !strings.HasPrefix(got.err, "ctd-decoder: error: ") || !strings.Contains(got.err, tt.says) || strings.Count(got.err, "\n") != 1 {
				t.Errorf("stderr %q does not say %q in one line", got.err, tt.says)
			}
			if last != "fail" {
				t.Errorf("keeper %v", got.keeper.asked)
			}
			if strings.Contains(got.err, secretText) || strings.Contains(got.err, "BEGIN") {
				t.Errorf("tells a secret: %s", got.err)
			}
			if max := len(big.plain) - layer.Holdback; len(got.out) > 0 && (tt.name != "big, first bit" || len(got.out) > max) {
				t.Errorf("%d bytes were released", len(got.out))
			}
		})
	}
}

func TestRunHelpAndVersion(t *testing.T) {
	t.Parallel()
	for arg, says := range map[string]string{
		"--help": "--decryption-keys-path DIR", "-h": "Exit codes:", "--version": "ctd-decoder ",
	} {
		if got := runFake([]string{arg}, nil, nil); got.code != exitOK || !strings.Contains(got.out, says) || got.err != "" {
			t.Errorf("%s: %+v", arg, got)
		}
	}
}

// No byte leaves before the keeper is there.
func TestRunWaitsForKeeper(t *testing.T) {
	t.Parallel()
	e := seal(t, 1000)
	p := marshal(t, e.payload(e.private))
	broken := errors.New("keeper is not there")
	for name, keep := range map[string]func(k *fakeKeeper) (keeper, error){
		"does not start":  func(k *fakeKeeper) (keeper, error) { return k, broken },
		"does not answer": func(k *fakeKeeper) (keeper, error) { k.err = broken; return k, nil },
	} {
		var out, errOut bytes.Buffer
		k := &fakeKeeper{}
		code := run(nil, stdio{
			in: bytes.NewReader(e.sealed), out: &out, err: &errOut,
			payload: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil },
			keep:    func() (keeper, error) { return keep(k) },
		})
		if code != exitFailure || out.Len() > 0 || !strings.Contains(errOut.String(), "keeper is not there") {
			t.Errorf("%s: exit code %d, %d bytes, stderr %q", name, code, out.Len(), errOut.String())
		}
	}
}

type writeError struct{ err error }

func (w writeError) Write([]byte) (int, error) { return 0, w.err }

func TestRunCannotWrite(t *testing.T) {
	t.Parallel()
	e := seal(t, 1000)
	p := marshal(t, e.payload(e.private))
	for _, tt := range []struct {
		err  error
		says string
	}{
		{&os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}, ""},
		{syscall.ENOSPC, "no space left"},
	} {
		var errOut bytes.Buffer
		code := run(nil, stdio{
			in: bytes.NewReader(e.sealed), out: writeError{tt.err}, err: &errOut,
			payload: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil },
			keep:    func() (keeper, error) { return noKeeper{}, nil },
		})
		if got := errOut.String(); code != exitFailure || (tt.says == "") != (got == "") || !strings.Contains(got, tt.says) {
			t.Errorf("%v: exit code %d, stderr %q", tt.err, code, got)
		}
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKeysPath(t *testing.T) {
	t.Parallel()
	e := seal(t, 1000)
	other, _ := keyPair(t)
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir string)
		sent [][]byte
		code int
		says []string // lines on stderr, in order
	}{
		{"missing", func(t *testing.T, dir string) { os.Remove(dir) }, nil, exitNoKey, []string{"error: "}},
		{"missing, key sent", func(t *testing.T, dir string) { os.Remove(dir) }, [][]byte{e.private}, exitOK, nil},
		{"empty", func(*testing.T, string) {}, nil, exitNoKey, []string{"error: "}},
		{"key", func(t *testing.T, dir string) { write(t, dir+"/key.pem", e.private) }, nil, exitOK, nil},
		{"key below", func(t *testing.T, dir string) { write(t, dir+"/a/b/key.pem", e.private) }, nil, exitOK, nil},
		{"key, another one sent", func(t *testing.T, dir string) { write(t, dir+"/key.pem", e.private) }, [][]byte{other}, exitOK, nil},
		{"key, garbage sent", func(t *testing.T, dir string) { write(t, dir+"/key.pem", e.private) }, [][]byte{[]byte("x")}, exitOK, nil},
		{"garbage first", func(t *testing.T, dir string) {
			write(t, dir+"/README", []byte("not a key"))
			write(t, dir+"/key.pem", e.private)
		}, nil, exitOK, []string{"warning: DIR/README: "}},
		{"garbage, but the sent key opens it", func(t *testing.T, dir string) {
			write(t, dir+"/README", []byte("not a key"))
		}, [][]byte{e.private}, exitOK, nil},
		{"garbage only", func(t *testing.T, dir string) {
			write(t, dir+"/README", []byte("not a key"))
		}, nil, exitNoKey, []string{"warning: DIR/README: ", "error: "}},
		{"much garbage", func(t *testing.T, dir string) {
			for i := range 30 {
				write(t, fmt.Sprintf("%s/%02d", dir, i), []byte("not a key"))
			}
			write(t, dir+"/key.pem", e.private)
		}, nil, exitOK, []string{
			"warning: DIR/00", "warning: DIR/01", "warning: DIR/02", "warning: DIR/03", "warning: DIR/04", "warning: DIR/05",
			"warning: DIR/06", "warning: DIR/07", "warning: DIR/08", "warning: DIR/09", "warning: and more",
		}},
		{"wrong key", func(t *testing.T, dir string) { write(t, dir+"/key.pem", other) }, nil, exitNoKey, []string{"error: "}},
		{"Kubernetes Secret", func(t *testing.T, dir string) {
			write(t, dir+"/..2026_01_01/key.pem", e.private)
			link(t, "..2026_01_01", dir+"/..data")
			link(t, "..data/key.pem", dir+"/key.pem")
		}, nil, exitOK, nil},
		{"dangling link", func(t *testing.T, dir string) {
			link(t, "nowhere", dir+"/gone.pem")
			write(t, dir+"/key.pem", e.private)
		}, nil, exitOK, []string{"warning: DIR/gone.pem"}},
		{"encrypted key, no password", func(t *testing.T, dir string) {
			write(t, dir+"/enc.pem", encryptedKey(t))
		}, nil, exitNoKey, []string{"warning: DIR/enc.pem", "error: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tt.make(t, dir)
			got := runFake([]string{"--decryption-keys-path", dir}, bytes.NewReader(e.sealed), marshal(t, e.payload(tt.sent...)))
			if got.code != tt.code {
				t.Errorf("exit code %d, want %d", got.code, tt.code)
			}
			if tt.code == exitOK && got.out != string(e.plain) {
				t.Errorf("%d bytes", len(got.out))
			}
			lines := strings.Split(strings.TrimSuffix(got.err, "\n"), "\n")
			if got.err == "" {
				lines = nil
			}
			if len(lines) != len(tt.says) {
				t.Fatalf("stderr %q, want %q", lines, tt.says)
			}
			for i, line := range lines {
				if want := "ctd-decoder: " + strings.ReplaceAll(tt.says[i], "DIR", dir); !strings.HasPrefix(line, want) {
					t.Errorf("stderr %q, want %q", line, want)
				}
			}
		})
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// encryptedKey is a key in the old encrypted PEM form, which needs no other tool.
func encryptedKey(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 It is deprecated because it is weak, which is no matter here.
	block, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), []byte("pw"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// What the kernel can hand a process as descriptor 3 is told from a payload.
func TestDescriptor3(t *testing.T) {
	t.Parallel()
	program := testenv.Build(t, "./cmd/ctd-decoder")
	file, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, tt := range []struct {
		name string
		fd3  []*os.File
		says string
	}{
		{"none", nil, "descriptor 3 is "},
		{"file", []*os.File{file}, "descriptor 3 is not a pipe"},
		{"writing end", []*os.File{w}, "descriptor 3 cannot be read"},
	} {
		cmd := exec.Command(program)
		cmd.ExtraFiles = tt.fd3
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil || cmd.ProcessState.ExitCode() != exitFailure || len(out) > 0 {
			t.Errorf("%s: %v, %d bytes", tt.name, err, len(out))
		}
		if want := "ctd-decoder: error: containerd sent no payload: " + tt.says; !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("%s: stderr %q, want %q", tt.name, stderr.String(), want)
		}
	}
}

// The program that containerd starts for every layer is small, and links neither
// containerd nor a library for command lines.
func TestProgramIsSmall(t *testing.T) {
	t.Parallel()
	info, err := os.Stat(testenv.Build(t, "./cmd/ctd-decoder"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 14<<20 {
		t.Errorf("%d bytes", info.Size())
	}
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		if strings.HasPrefix(pkg, "github.com/containerd/") || strings.HasPrefix(pkg, "github.com/urfave/") {
			t.Errorf("links %s", pkg)
		}
	}
}
