package pkcs11_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// The configuration of modules is found where ocicrypt looks for it, and read when a token is needed. One
// that is named must be there, and each must be right.
func TestModules(t *testing.T) {
	t.Parallel()
	f := newFake(t, "hang-after-answer")
	good := string(read(t, f.config.File))
	dir := func(content string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ocicrypt.conf"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	empty, right, nothing := t.TempDir(), dir(good), dir("pkcs11: {}\n")
	cases := []struct {
		name       string
		file, dirs string
		want       pkcs11.Reason // empty: it is found
		says       string
	}{
		{"file", filepath.Join(right, "ocicrypt.conf"), empty, "", ""},
		{"first directory", "", right + ":" + nothing, "", ""},
		{"second directory", "", empty + "::" + right, "", ""},
		{"another one first", "", nothing + ":" + right, pkcs11.ModuleForbidden, "by " + nothing + "/ocicrypt.conf"},
		{"file goes first", filepath.Join(nothing, "ocicrypt.conf"), right, pkcs11.ModuleForbidden, ""},
		{"nowhere", "", empty, pkcs11.NoModuleConfig, "no ocicrypt.conf in " + empty + " (OCICRYPT_CONFIG=internal"},
		{"nothing given", "", "", pkcs11.NoModuleConfig, "no ocicrypt.conf (OCICRYPT_CONFIG=internal"},
		{"no such file", "/no/such/file", right, pkcs11.NoModuleConfig, "/no/such/file: no such file"},
		{"a directory", right, right, pkcs11.NoModuleConfig, right + ": is a directory"},
		{"a directory in a directory", "", filepath.Dir(filepath.Join(mkdir(t), "x")), pkcs11.NoModuleConfig, "is a directory"},
		{"internal", "internal", right, pkcs11.ModuleForbidden, "by the internal configuration"},
		{"not YAML", "", dir("a: b: c"), pkcs11.BadModuleConfig, "ocicrypt.conf: it is not the YAML"},
		{"no section", "", dir("module-directories: [/x]\n"), pkcs11.BadModuleConfig, "no pkcs11 in it"},
		{"not a list", "", dir("pkcs11: {allowed-module-paths: {a: b}}\n"), pkcs11.BadModuleConfig, "it is not the YAML"},
		{"relative", "", dir("pkcs11: {allowed-module-paths: [lib/]}\n"), pkcs11.BadModuleConfig, `"lib/" is no absolute path`},
		{"empty path", "", dir("pkcs11: {allowed-module-paths: ['']}\n"), pkcs11.BadModuleConfig, "no absolute path"},
		{"too large", "", dir("#" + strings.Repeat("x", keys.MaxFileSize)), pkcs11.NoModuleConfig, "larger than"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := pkcs11.Config{File: tc.file, Dirs: tc.dirs, Helper: f.config.Helper}
			id := newIdentity(t, c, f.path)
			secret, err := id.Unwrap(t.Context(), []layer.Packet{f.packet})
			params, paramsErr := id.(keys.Portable).Parameters()
			if tc.want == "" {
				if err != nil || string(secret) != "secret" || paramsErr != nil || len(params[keys.ParamPKCS11Config]) != 1 {
					t.Errorf("%q, %v, %v", secret, err, paramsErr)
				}
				return
			}
			reasonIs(t, tc.name, err, tc.want)
			if err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v does not say %q", err, tc.says)
			}
			// Where there is none, whoever gets the parameters may have one.
			switch {
			case tc.want == pkcs11.ModuleForbidden:
			case tc.file == "" && tc.want == pkcs11.NoModuleConfig && !strings.Contains(tc.name, "directory") && tc.name != "too large":
				if paramsErr != nil || params[keys.ParamPKCS11Config] != nil {
					t.Errorf("parameters: %v, %v", params, paramsErr)
				}
			default:
				reasonIs(t, "parameters", paramsErr, tc.want)
			}
			// Nobody needs it for what is not on a token.
			if _, err := id.Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe"}}); !errors.Is(err, keys.ErrNoMatch) {
				t.Error(err)
			}
		})
	}
	_, err := newIdentity(t, pkcs11.Config{File: "/no/such/file"}, f.path).Unwrap(t.Context(), []layer.Packet{f.packet})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
}

// mkdir makes a directory in which ocicrypt.conf is one, too.
func mkdir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "ocicrypt.conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
