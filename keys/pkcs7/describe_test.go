package pkcs7_test

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"imgcrypt/keys/pkcs7"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	one := big.NewInt(1)
	name := func(attributes ...pkix.AttributeTypeAndValue) asn1.RawValue {
		return buildRecipient(t, buildName(t, attributes...), one, nil)
	}
	attribute := func(value any, id ...int) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: id, Value: value}
	}
	for _, tt := range []struct {
		name       string
		recipients []asn1.RawValue
		want       []string
	}{
		{"no recipient", nil, []string{"[pkcs7]"}},
		{"no name", []asn1.RawValue{name()}, []string{`issuer="" serial=01`}},
		{"two", []asn1.RawValue{name(commonName("a")), name(commonName("bb"))}, []string{`issuer="CN=a" serial=01`, `issuer="CN=bb" serial=01`}},
		{"short names", []asn1.RawValue{name(attribute("DE", 2, 5, 4, 6), attribute("com", 0, 9, 2342, 19200300, 100, 1, 25), attribute("x", 2, 5, 4, 11))}, []string{`issuer="OU=x,DC=com,C=DE" serial=01`}},
		{"unknown attribute", []asn1.RawValue{name(attribute("x", 1, 2, 3))}, []string{`issuer="1.2.3=x" serial=01`}},
		{"no text", []asn1.RawValue{name(attribute(5, 2, 5, 4, 3))}, []string{`issuer="CN=#020105" serial=01`}},
		{"separators", []asn1.RawValue{name(commonName(`a,O=b+c\d"e`))}, []string{`issuer="CN=a\\,O=b\\+c\\\\d\"e" serial=01`}},
		{"line breaks", []asn1.RawValue{name(commonName("a\nb\u2028c\u202ed\x1b[31m"))}, []string{`issuer="CN=a\nb\u2028c\u202ed\x1b[31m" serial=01`}},
		{"of the world", []asn1.RawValue{name(commonName("Jürgen 李"))}, []string{`issuer="CN=Jürgen 李" serial=01`}},
		{"serial 0", []asn1.RawValue{buildRecipient(t, buildName(t), big.NewInt(0), nil)}, []string{`issuer="" serial=00`}},
		{"negative serial", []asn1.RawValue{buildRecipient(t, buildName(t), big.NewInt(-0xabc), nil)}, []string{`issuer="" serial=-0ABC`}},
		{"issuer that is no name", []asn1.RawValue{buildRecipient(t, marshal(t, 5).FullBytes, one, nil)}, []string{`issuer="?" serial=01`}},
		{"kind without a key", []asn1.RawValue{implicit(1, true, nil), name(commonName("a"))}, []string{"[pkcs7]", `issuer="CN=a" serial=01`}},
	} {
		data := buildPacket(t, nil, nil, tt.recipients...)
		got := pkcs7.Describe(packet(data))
		if len(got) == 2 && len(got[0]) > len(got[1]) {
			got[0], got[1] = got[1], got[0] // a set is sorted when it is written
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	for name, data := range map[string][]byte{"empty": nil, "text": []byte("text"), "no recipient that parses": buildPacket(t, nil, nil, marshal(t, 5))} {
		if d := cmp.Diff([]string{"[pkcs7]"}, pkcs7.Describe(packet(data))); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// checkDescription holds for whatever anyone wrote.
func checkDescription(t testing.TB, all []string) {
	t.Helper()
	if len(all) == 0 || len(all) > 1001 {
		t.Errorf("%d descriptions", len(all))
	}
	for _, text := range all {
		if text == "" || len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("described as %d bytes: %.300q", len(text), text)
		}
	}
}
