//go:build unix

package keys_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"imgcrypt/keys"
)

// tree makes files (name → content), directories (name ends with /) and symbolic
// links (content "-> target") in a fresh directory.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(root, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(files[i+1]), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// names returns what Dir found below root, relative to it.
func names(t *testing.T, root string) (found []string, warnings []error) {
	t.Helper()
	ids, warnings := newParser().Dir(root)
	for _, id := range ids {
		rel, err := filepath.Rel(root, id.(keys.Named).Name())
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, rel)
	}
	return found, warnings
}

func wantNames(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func wantWarnings(t *testing.T, got []error, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d warnings, want %d: %v", len(got), len(want), got)
		return
	}
	for i, err := range got {
		if !strings.Contains(err.Error(), want[i]) || strings.Contains(err.Error(), "\n") {
			t.Errorf("warning %q, want %q", err, want[i])
		}
	}
}

func TestDirOfAKubernetesSecret(t *testing.T) {
	t.Parallel()
	a, b := string(newEC(t, "P-256")), string(newEC(t, "P-384"))
	root := tree(t,
		"..2026_01_02/a.pem", a,
		"..2026_01_02/b.pem", b,
		"..data", "-> ..2026_01_02",
		"a.pem", "-> ..data/a.pem",
		"b.pem", "-> ..data/b.pem",
	)
	found, warnings := names(t, root)
	wantNames(t, found, "a.pem", "b.pem")
	wantWarnings(t, warnings)
}

func TestDirInOrder(t *testing.T) {
	t.Parallel()
	key := func() string { return string(newEC(t, "P-256")) }
	same := key()
	root := tree(t,
		"b.pem", key(),
		"a/z.pem", key(),
		"a/deep/er/k.pem", key(),
		"c", "-> ../"+filepath.Base(t.TempDir())+"-none",
		".hidden.pem", key(),
		"same1.pem", same,
		"same2.pem", "-> same1.pem",
	)
	if err := os.Link(filepath.Join(root, "same1.pem"), filepath.Join(root, "same3.pem")); err != nil {
		t.Fatal(err)
	}
	found, warnings := names(t, root)
	wantNames(t, found, ".hidden.pem", "a/deep/er/k.pem", "a/z.pem", "b.pem", "same1.pem")
	wantWarnings(t, warnings, "/c: no such file")
}

func TestDirWithLoops(t *testing.T) {
	t.Parallel()
	root := tree(t,
		"sub/up", "-> ..",
		"sub/self", "-> self",
		"sub/k.pem", string(newEC(t, "P-256")),
		"twin", "-> sub",
	)
	found, warnings := names(t, root)
	wantNames(t, found, "sub/k.pem")
	wantWarnings(t, warnings, "sub/self: too many levels of symbolic links")
}

func TestDirWithOtherThings(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	root := tree(t,
		"1-note.txt", "remember: "+password,
		"2-public.pem", string(publicOf(t, ec)),
		"3-locked.pem", string(openssl(t, ec, "pkcs8", "-topk8", "-passout", "pass:"+password)),
		"4-empty", "",
		"5-large", strings.Repeat("x", keys.MaxFileSize+1),
		"9-good.pem", string(ec),
	)
	if err := unix.Mkfifo(filepath.Join(root, "6-fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(root, "7-socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("/dev/zero", filepath.Join(root, "8-device")); err != nil {
		t.Fatal(err)
	}
	found, warnings := names(t, root)
	wantNames(t, found, "9-good.pem")
	wantWarnings(t, warnings,
		"1-note.txt: not a usable key: neither PEM, DER nor JWK",
		"2-public.pem: not a usable key: it holds a public key",
		"3-locked.pem: skipped: encrypted, and nothing gives its password",
		"4-empty: not a usable key: an empty file",
		"5-large: larger than 1 MiB",
		"6-fifo: skipped: not a regular file",
		"7-socket: skipped: not a regular file",
		"8-device: skipped: not a regular file",
	)
	for _, w := range warnings {
		if strings.Contains(w.Error(), password) {
			t.Errorf("the warning repeats the file: %v", w)
		}
	}
	if !errors.Is(warnings[2], keys.ErrPassword) {
		t.Error("the encrypted key's warning is no ErrPassword")
	}
}

func TestDirThatIsNone(t *testing.T) {
	t.Parallel()
	found, warnings := names(t, filepath.Join(t.TempDir(), "none"))
	wantNames(t, found)
	wantWarnings(t, warnings)
	found, warnings = names(t, t.TempDir())
	wantNames(t, found)
	wantWarnings(t, warnings)
	file := writeFile(t, "key.pem", newEC(t, "P-256"))
	found, warnings = names(t, file)
	wantNames(t, found, ".")
	wantWarnings(t, warnings)
}

// Certificates lie beside their keys in the directories that servers use.
func TestDirWithCertificates(t *testing.T) {
	t.Parallel()
	key := newRSA(t)
	cert := string(certificateOf(t, key))
	found, warnings := names(t, tree(t, "ca.crt", cert, "tls.crt", cert+cert, "tls.key", string(key)))
	wantNames(t, found, "tls.key")
	wantWarnings(t, warnings)
}
