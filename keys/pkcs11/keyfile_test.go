package pkcs11_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
)

// What is no key file is passed on, what is meant to be one but broken is an error, which repeats nothing.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	uri := func(text string) string { return "pkcs11:\n  uri: '" + text + "'\n" }
	const good, secret = "pkcs11:token=t;object=o?module-name=m", "canary-secret"
	cases := []struct {
		name, data string
		want       error // nil: it is a key file
	}{
		{"good", uri(good + "&pin-value=" + secret), nil},
		{"with environment", uri(good) + "module:\n  env: {A: b, C: 5}\n", nil},
		{"JSON", `{"pkcs11":{"uri":"` + good + `"}}`, nil},
		{"comment, document, more", "# key\n---\nother: 1\n" + uri(good), nil},
		{"byte order mark", "\ufeff" + uri(good), nil},
		{"only an id", uri("pkcs11:id=%01?module-path=/m.so"), nil},
		{"empty", "", keys.ErrNoMatch},
		{"PEM", "-----BEGIN PRIVATE KEY-----\nMIIpkcs11\n-----END PRIVATE KEY-----\n", keys.ErrNoMatch},
		{"JWK", `{"kty":"RSA","n":"pkcs11"}`, keys.ErrNoMatch},
		{"bytes", "\x30\x82\x00pkcs11\xff", keys.ErrNoMatch},
		{"a text", "pkcs11", keys.ErrNoMatch},
		{"the URI itself", good, keys.ErrNotKey},
		{"a list", "- pkcs11\n- uri\n", keys.ErrNoMatch},
		{"other YAML", "uri: pkcs11:token=t\n", keys.ErrNoMatch},
		{"a configuration", "pkcs11:\n  module-directories: []\n", keys.ErrNoMatch},
		{"empty URI", uri(""), keys.ErrNoMatch},
		{"as a list", "pkcs11:\n- uri: " + good + "\n", keys.ErrNotKey},
		{"tabs", "pkcs11:\n\turi: " + good + "?pin-value=" + secret + "\n", keys.ErrNotKey},
		{"environment as a list", uri(good) + "module:\n  env: [A=" + secret + "]\n", keys.ErrNotKey},
		{"environment of mappings", uri(good) + "module:\n  env: {A: {b: " + secret + "}}\n", keys.ErrNotKey},
		{"impossible variable", uri(good) + "module:\n  env: {'A=B': " + secret + "}\n", keys.ErrNotKey},
		{"zero byte in a variable", uri(good) + "module:\n  env: {A: \"" + secret + "\\0\"}\n", keys.ErrNotKey},
		{"another scheme", uri("http://example.test/" + secret), keys.ErrNotKey},
		{"no value", uri(good + "&pin-value=a&" + secret), keys.ErrNotKey},
		{"percent", uri(good + "&pin-value=" + secret + "%zz"), keys.ErrNotKey},
		{"twice", uri(good + "&pin-value=" + secret + "&pin-value=" + secret), keys.ErrNotKey},
		{"both PINs", uri(good + "&pin-value=" + secret + "&pin-source=/x"), keys.ErrNotKey},
		{"slot-id", uri("pkcs11:slot-id=" + secret + ";object=o?module-name=m"), keys.ErrNotKey},
		{"negative slot-id", uri("pkcs11:slot-id=-1;object=o?module-name=m"), keys.ErrNotKey},
		{"no key", uri("pkcs11:token=t?module-name=m"), keys.ErrNotKey},
		{"no module", uri("pkcs11:token=t;object=o"), keys.ErrNotKey},
		{"relative module", uri("pkcs11:token=t;object=o?module-path=m.so"), keys.ErrNotKey},
		{"zero byte in the module", uri("pkcs11:token=t;object=o?module-name=%00"), keys.ErrNotKey},
	}
	for _, c := range cases {
		for scheme, password := range map[string][]byte{"without": nil, "with": []byte(secret)} {
			id, err := pkcs11.Scheme(pkcs11.Config{}).Identity(keys.Key{Label: "key.yaml", Data: []byte(c.data), Password: password})
			if c.want == nil && (err != nil || id.(keys.Named).Name() != "key.yaml") || !errors.Is(err, c.want) {
				t.Errorf("%s, %s a password: %v", c.name, scheme, err)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", c.name, err)
			}
			if errors.Is(c.want, keys.ErrNotKey) && !strings.HasPrefix(fmt.Sprint(err), "key.yaml: ") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}
