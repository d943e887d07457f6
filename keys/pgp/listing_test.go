package pgp

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What gpg 1.4, 2.2 and 2.4 print of keys.
func TestParseListing(t *testing.T) {
	t.Parallel()
	const listing = `tru::1:1795469136:1795555536:3:1:5
pub:u:3072:1:46221043DCBD48E2:1795469136:::u:::scESC::::::23::0:
fpr:::::::::122375B8C2E1BB1D66720AEA46221043DCBD48E2:
grp:::::::::90503E918B10E0C1870AD4B48D129ABDF04B03F5:
uid:u::::1795469136::E275056101A1B2246FBFBE8E2C85F1925D919036::A\x3a B \x5c C\x20\x5c <a@example.com>::::::::::0:
uat:u::::1795469136::E275056101A1B2246FBFBE8E2C85F1925D919036::1 3000:
uid:r::::1795469136::E275056101A1B2246FBFBE8E2C85F1925D919036::old\n\q\x9:
sub:e:3072:1:34CD36EDB8D71553:1795469136::::::e::::::23:
fpr:::::::::88517F907A9611BA2508BAA234CD36EDB8D71553:
sec:u:255:22:8CA734198218A656:1795469136:1795555536::u:::scSC:::#::ed25519:::0:
fpr:::::::::139F34ACDBC6D573D47469128CA734198218A656:
ssb:u:255:18:1CA734198218A656:1795469136:1795555536:::::e:::+::cv25519:::0:
ssb:u:255:18:2CA734198218A656:1795469136:1795555536:::::e:::D2760001240102000005000000000000::cv25519:::0:
`
	want := []listedKey{
		{validity: 'u', capabilities: "scESC", userIDs: []listedUserID{{'u', `A: B \ C \ <a@example.com>`}, {'r', "old\n\\q\\x9"}}, parts: []listedPart{
			{id: 0x46221043DCBD48E2, fingerprint: "122375B8C2E1BB1D66720AEA46221043DCBD48E2"},
			{id: 0x34CD36EDB8D71553, fingerprint: "88517F907A9611BA2508BAA234CD36EDB8D71553"},
		}},
		{validity: 'u', capabilities: "scSC", parts: []listedPart{
			{id: 0x8CA734198218A656, fingerprint: "139F34ACDBC6D573D47469128CA734198218A656"},
			{id: 0x1CA734198218A656, secret: true}, {id: 0x2CA734198218A656, secret: true},
		}},
	}
	got := parseListing([]byte(listing))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(listedKey{}, listedPart{}, listedUserID{})); diff != "" {
		t.Error(diff)
	}
	if got := parseListing([]byte(strings.ReplaceAll(listing, "\n", "\r\n"))); got[0].fingerprint() != want[0].fingerprint() {
		t.Errorf("with line ends of Windows: %v", got)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"alice@example.com":       "alice@example.com",
		"Élise":                   "Élise",
		"Alice Example":           `"Alice Example"`,
		"a,b":                     `"a,b"`,
		"\x1b[2J":                 `"\x1b[2J"`,
		"\xff":                    "?",
		strings.Repeat("a", 1000): strings.Repeat("a", 200),
		"a\u202eb":                `"a\u202eb"`,
		"":                        "",
	} {
		if got := printable(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for userID, want := range map[string]string{
		"Alice (work) <alice@example.com>": "alice@example.com",
		"alice@example.com":                "alice@example.com",
		"Alice: B. <alice@example.com>":    "alice@example.com",
		"Alice":                            "",
		"<>":                               "",
		"a < b":                            "",
		"":                                 "",
	} {
		if got := address(userID); got != want {
			t.Errorf("the address in %q is %q, want %q", userID, got, want)
		}
	}
}

func FuzzPGPListing(f *testing.F) {
	f.Add([]byte("pub:u:3072:1:46221043DCBD48E2:1795469136:::u:::scESC:\nfpr:::::::::122375B8\nuid:u::::1::E::A\\x3a:\nsub\n"), "alice")
	f.Add([]byte("uid\nfpr\nsec:\nfpr\nssb:r\\x"), "0x46221043DCBD48E2")
	f.Fuzz(func(t *testing.T, data []byte, what string) {
		q, err := parseQuery(what)
		for _, k := range parseListing(data) {
			if err == nil {
				q.match(&k)
			}
			if line := k.String() + k.unusable(); strings.ContainsAny(line[len(k.fingerprint()):], "\n\x1b") {
				t.Errorf("%q is not one line", line)
			}
		}
	})
}
