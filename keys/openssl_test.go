package keys_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imgcrypt/internal/testenv"
)

// password protects all encrypted keys of the tests; it is also what no error may
// contain.
const password = "canary:pass=wörd"

// openssl runs the openssl command and returns its standard output.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	testenv.Need(t, "openssl")
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// newRSA and newEC return fresh private keys as PKCS#8 PEM.
func newRSA(t testing.TB) []byte {
	t.Helper()
	return openssl(t, nil, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
}

func newEC(t testing.TB, curve string) []byte {
	t.Helper()
	return openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:"+curve)
}

// publicOf returns the public half of a private key as PEM.
func publicOf(t testing.TB, private []byte) []byte {
	t.Helper()
	return openssl(t, private, "pkey", "-pubout")
}

// certificateOf returns a self-signed certificate for a private key as PEM.
func certificateOf(t testing.TB, private []byte) []byte {
	t.Helper()
	return openssl(t, nil, "req", "-x509", "-new", "-key", writeFile(t, "for-cert.pem", private), "-subj", "/CN=imgcrypt test")
}

func toDER(t testing.TB, pem []byte) []byte {
	t.Helper()
	return openssl(t, pem, "pkey", "-outform", "DER")
}

// writeFile writes a file in a directory of its own and returns its path.
func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
