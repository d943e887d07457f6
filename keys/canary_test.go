package keys_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// window is how many bytes of a file in a row count as repeating it.
const window = 10

// leaks returns a part of secret that text repeats, as it is or encoded.
func leaks(text string, secret []byte) string {
	for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret)} {
		for i := 0; i+window <= len(form); i++ {
			if part := form[i : i+window]; strings.Contains(text, part) {
				return part
			}
		}
	}
	return ""
}

// body is a key file without what every key file has: labels and headers.
func body(data []byte) []byte {
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return data
	}
	var kept []byte
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "-----") && !strings.Contains(line, ":") {
			kept = append(kept, strings.TrimSpace(line)...)
		}
	}
	return kept
}

// Whatever is done to a key file or its password, no error repeats any of it.
func TestNoErrorRepeatsASecret(t *testing.T) {
	t.Parallel()
	secret := "canary-" + password
	for kind, private := range map[string][]byte{"RSA": newRSA(t), "EC": newEC(t, "P-256")} {
		files := unencrypted(t, private)
		maps.Copy(files, encrypted(t, private))
		// They only differ in the work they take, and here they are read often.
		delete(files, "PKCS8 scrypt")
		delete(files, "PKCS8 many iterations")
		files["symmetric JWK"] = []byte(`{"kty":"oct","k":"` + secret + `"}`)
		files["JWK of canaries"] = []byte(`{"kty":"` + secret + `","crv":"` + secret + `"}`)
		files["EC JWK of canaries"] = []byte(`{"kty":"EC","crv":"` + secret + `","d":"` + secret + `"}`)
		files["JWK with URL"] = []byte(`{"kty":"EC","crv":"P-256","x":"AA","y":"AA","x5u":"::` + secret + `"}`)
		files["only the password"] = []byte(secret)
		files["password as JSON"] = []byte("{" + secret)
		delete(files, "text around it")
		for name, data := range files {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				for i, spoiled := range spoil(data) {
					for _, pw := range []string{secret, password} {
						checkErrors(t, fmt.Sprint(name, " ", i), spoiled, pw)
					}
				}
			})
		}
	}
}

// spoil returns data as it is and damaged in several ways.
func spoil(data []byte) [][]byte {
	all := [][]byte{data, data[:len(data)/2], data[len(data)/2:], append(bytes.Clone(data), data...)}
	for i := 1; i < 4; i++ {
		bad := bytes.Clone(data)
		bad[len(bad)*i/4] ^= 0x15
		all = append(all, bad)
	}
	return all
}

func checkErrors(t *testing.T, name string, data []byte, pw string) {
	t.Helper()
	check := func(what string, err error) {
		if err == nil {
			return
		}
		for _, s := range [][]byte{body(data), []byte(pw)} {
			if part := leaks(err.Error(), s); part != "" {
				t.Errorf("%s, %s: %q repeats %q", name, what, err, part)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s, %s: more than one line: %q", name, what, err)
		}
	}
	_, err := keys.ParsePrivateKeys(data, []byte(pw))
	check("private", err)
	_, err = keys.ParsePublicKey(data)
	check("public", err)
	_, err = jwe.Scheme().Recipients(t.Context(), parameters{"pubkeys": {data}})
	check("recipient", err)
	_, err = newParser().IdentityOf(keys.Key{Label: "label", Data: data, Password: []byte(pw)})
	check("identity", err)
	ids, err := keys.FromParameters(schemes.All(schemes.Options{}), parameters{"privkeys": {data}, "privkeys-passwords": {[]byte(pw)}})
	check("parameters", err)
	_, err = keys.Open(t.Context(), ids, map[string]string{layer.KeysAnnotationPrefix + "jwe": "AAAA"})
	check("open", err)
	_, err = keys.RecipientsFromParameters(t.Context(), schemes.All(schemes.Options{}), parameters{"pubkeys": {data}})
	check("recipients", err)
}
