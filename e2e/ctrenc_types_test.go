package e2e

import (
	"testing"

	"imgcrypt/internal/testnode"
)

// Layers that are not to be distributed, but are here, are encrypted and run like others.
func TestNonDistributable(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, spec := rsaKeys(t), runnable(t)
		for i := range spec.Layers {
			spec.Layers[i].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}
		file, _ := archive(t, spec, plainName)
		n.Ctr("images", "import", "--no-unpack", file).OK(t)
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, encName).OK(t)
		if r := n.run(nil, encName); r.Code == 0 {
			t.Errorf("runs without a key:\n%s", r)
		}
		if r := n.run([]string{"--key", keys.private}, encName); r.Code != 0 || r.Stdout != hello {
			t.Errorf("does not run with the key:\n%s", r)
		}
	})
}
