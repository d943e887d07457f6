package e2e

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testprovider"
	"imgcrypt/internal/testregistry"
)

// matrix is the table of what opens what. testreport prints it at the end.
type matrix struct {
	rows, columns []string

	mu    sync.Mutex
	cells map[[2]string]string
}

// matrixRow is an image: who can open it.
type matrixRow struct {
	name    string
	holders []testkeys.Holder
}

// matrixRows makes the keys of a user for all rows.
func matrixRows(t *testing.T) (*testkeys.User, []matrixRow) {
	t.Helper()
	user := testkeys.NewUser(t)
	var rows []matrixRow
	all := user.All(t)
	for _, h := range all {
		rows = append(rows, matrixRow{h.Scheme, []testkeys.Holder{h}})
	}
	// A provider that is a command, and one that is a service.
	last := &rows[len(rows)-1]
	last.holders = append(last.holders, user.Provider(t, testprovider.Options{Transport: testprovider.GRPC, TLS: true, ClientCert: true}))
	return user, append(rows, matrixRow{"all five", all})
}

// fill fills the cells of a column, each in a test of its own. What work returns goes into the table.
func (m *matrix) fill(t *testing.T, column string, rows []matrixRow, work func(t *testing.T, row matrixRow) string) {
	t.Helper()
	m.columns = append(m.columns, column)
	for _, row := range rows {
		m.cell(t, row, column, true, work)
	}
}

func (m *matrix) cell(t *testing.T, row matrixRow, column string, parallel bool, work func(t *testing.T, row matrixRow) string) {
	t.Helper()
	t.Run(row.name+"/"+column, func(t *testing.T) {
		if parallel {
			t.Parallel()
		}
		var text string
		defer func() {
			switch {
			case t.Failed():
				text = "FAILED"
			case t.Skipped():
				text = "skipped"
			}
			m.set(row.name, column, text)
		}()
		text = work(t, row)
	})
}

func (m *matrix) set(row, column, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cells[[2]string{row, column}] = text
}

// report hands the table to testreport, a line at a time.
func (m *matrix) report(t *testing.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\t"+strings.Join(m.columns, "\t"))
	for _, row := range m.rows {
		line := []string{row}
		for _, column := range m.columns {
			text, ok := m.cells[[2]string{row, column}]
			if !ok {
				text = "not run"
			}
			line = append(line, text)
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	w.Flush()
	for line := range strings.Lines(b.String()) {
		t.Attr("report", strings.TrimRight(line, " \n"))
	}
	for _, line := range []string{
		"ok: every recipient alone opens it, byte for byte; ok (3): so do jwe, pgp and pkcs7, and the tool knows no others; n/a: the tool does not know the scheme",
		"→ encrypted here, opened there; ← the other way round; run: ctr-enc run --key; node: ctd-decoder with the node's keys alone",
	} {
		t.Attr("report", line)
	}
}

// What is encrypted here opens there, the other way round, and runs, by every kind of key, and by each of several.
func TestSchemeMatrix(t *testing.T) {
	t.Parallel()
	m := &matrix{cells: make(map[[2]string]string)}
	t.Cleanup(func() { m.report(t) })
	user, rows := matrixRows(t)
	for _, row := range rows {
		m.rows = append(m.rows, row.name)
	}

	// SoftHSM 2.6 has its files of a token broken for a moment while somebody logs in, so nobody else may then.
	var token sync.Mutex
	m.fill(t, "→ ocicrypt", rows, func(t *testing.T, row matrixRow) string {
		token.Lock()
		defer token.Unlock()
		l, plain := threeLayers(t)
		enc := l.encryptFor(t, user, plain, "enc", row.holders...)
		for _, h := range row.holders {
			if err := l.ocicryptBy(t, user, enc, plain, h); err != nil {
				t.Errorf("%s: %v", h.Recipient, err)
			}
		}
		return "ok"
	})
	m.fill(t, "← ocicrypt", rows, func(t *testing.T, row matrixRow) string {
		token.Lock()
		defer token.Unlock()
		l, plain := threeLayers(t)
		enc, err := l.ocicryptFor(user, plain, nil, row.holders...)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range row.holders {
			dec, err := l.decryptBy(t, user, enc, h)
			if err == nil {
				err = l.sameLayers(t, dec, plain)
			}
			if err != nil {
				t.Errorf("%s: %v", h.Recipient, err)
			}
		}
		return "ok"
	})
	registry := testregistry.Start(t)
	tools := map[string]tool{"skopeo": skopeoTool{user}, "buildah": buildahTool{user, registry}}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(tools))) {
		m.fill(t, "→ "+name, rows, func(t *testing.T, row matrixRow) string {
			return toolOpens(t, tools[name], user, row.holders)
		})
		m.fill(t, "← "+name, rows, func(t *testing.T, row matrixRow) string {
			return weOpenTool(t, tools[name], user, row.holders)
		})
	}
	for _, version := range testnode.Versions() {
		run, node := "run "+string(version), "node "+string(version)
		m.columns = append(m.columns, run, node)
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			m.onNode(t, version, run, node)
		})
	}
}

// onNode fills the columns of a containerd.
func (m *matrix) onNode(t *testing.T, version testnode.Version, run, keys string) {
	user, rows := matrixRows(t)
	k := newNodeKeys(t, user)
	n := startNode(t, testnode.Config{Version: version, KeysDir: k.dir, DecoderEnv: k.env})
	client := n.with(user.Env())
	n.load(t, runnable(t), plainName)
	archives := make(map[string]string)
	for _, row := range rows {
		var recipients []string
		for _, h := range row.holders {
			recipients = append(recipients, h.Recipient)
		}
		args := append([]string{"images", "encrypt"}, flags("--recipient", recipients)...)
		client.enc(append(args, plainName, encName)...).OK(t)
		archives[row.name] = filepath.Join(t.TempDir(), "image.tar")
		n.enc("images", "export", archives[row.name], encName).OK(t)
	}
	runs := func(t *testing.T, who *node, row matrixRow, h testkeys.Holder, flags ...string) {
		n.Clean(t)
		n.enc("images", "import", "--no-unpack", archives[row.name]).OK(t)
		if r := who.run(flags, encName); r.Code != 0 || r.Stdout != hello {
			t.Errorf("%s: %s", h.Recipient, r)
		}
	}
	for _, row := range rows {
		m.cell(t, row, run, false, func(t *testing.T, row matrixRow) string {
			k.none(t)
			for _, h := range row.holders {
				runs(t, client, row, h, flags("--key", h.Keys)...)
			}
			return "ok"
		})
		m.cell(t, row, keys, false, func(t *testing.T, row matrixRow) string {
			for _, h := range row.holders {
				k.only(t, h)
				runs(t, n, row, h, "--skip-decrypt-auth")
			}
			return "ok"
		})
	}
	n.leavesNothing(t)
}

// nodeKeys are what a node finds when its decoder looks for keys: they change while it runs.
type nodeKeys struct {
	// dir is the directory of keys, conf the configuration of key providers.
	dir, conf string
	// env is the decoder's environment.
	env []string
}

func newNodeKeys(t testing.TB, user *testkeys.User) nodeKeys {
	t.Helper()
	k := nodeKeys{dir: t.TempDir(), conf: filepath.Join(t.TempDir(), "providers.conf")}
	for _, variable := range user.NodeEnv() {
		k.env = append(k.env, strings.Replace(variable, user.ProviderConfig(), k.conf, 1))
	}
	return k
}

// none takes all keys away.
func (k nodeKeys) none(t testing.TB) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(k.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, k.conf) {
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// only leaves the node the keys of one holder.
func (k nodeKeys) only(t testing.TB, h testkeys.Holder) {
	t.Helper()
	k.none(t)
	k.add(t, h)
}

// add gives the node the keys of one more.
func (k nodeKeys) add(t testing.TB, h testkeys.Holder) {
	t.Helper()
	for _, file := range h.Files {
		// Files of several users may be called the same.
		writeFile(t, filepath.Join(k.dir, rand.Text()+"-"+filepath.Base(file)), readFile(t, file))
	}
	if h.Config != "" {
		writeFile(t, k.conf, []byte(h.Config))
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
