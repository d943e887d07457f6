package testsofthsm_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testsofthsm"
)

// Both tools make keys of the size that was asked for, on tokens that do not see each other.
func TestToken(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "p11tool")
	token, other := testsofthsm.New(t), testsofthsm.New(t)
	for _, c := range []struct {
		name string
		key  testsofthsm.Key
		bits int
	}{
		{"first", token.Key, 2048},
		{"of another token", other.Key, 2048},
		{"by OpenSC", token.NewKey(t, testsofthsm.Options{Bits: 1024, Label: "small"}), 1024},
		{"by GnuTLS", token.NewKey(t, testsofthsm.Options{Bits: 3072, GnuTLS: true}), 3072},
	} {
		data, err := os.ReadFile(c.key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			t.Fatalf("%s: no PEM: %s", c.name, data)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if k, ok := public.(*rsa.PublicKey); !ok || k.N.BitLen() != c.bits {
			t.Errorf("%s: %T of %d bits", c.name, public, k.N.BitLen())
		}
		yaml, err := os.ReadFile(c.key.YAML)
		if err != nil || !strings.Contains(string(yaml), c.key.URI) {
			t.Errorf("%s: %s, %v", c.name, yaml, err)
		}
	}
}
