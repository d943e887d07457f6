package pkcs11

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
	"go.yaml.in/yaml/v3"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
)

// modules says where the libraries of tokens are and which of them may be loaded.
type modules struct {
	// source is what errors call it.
	source string
	modulesYAML
}

// modulesYAML is how ocicrypt writes it: as the parameter "pkcs11-config", and below "pkcs11" in ocicrypt.conf.
type modulesYAML struct {
	Directories []string `yaml:"module-directories"`
	// Allowed are paths of libraries, or of directories, which end in a slash and stand for the libraries directly
	// in them.
	Allowed []string `yaml:"allowed-module-paths"`
}

// The names that ocicrypt gives.
const (
	internalModules = "internal"
	modulesFile     = "ocicrypt.conf"
)

// modules reads the configuration. A file that is named must be there; of those in directories it is the first.
func (c Config) modules() (*modules, error) {
	switch c.File {
	case internalModules:
		dirs := defaultDirectories()
		return &modules{source: "the internal configuration", modulesYAML: modulesYAML{Directories: dirs, Allowed: dirs}}, nil
	case "":
		return c.findModules()
	}
	return readModules(c.File)
}

func (c Config) findModules() (*modules, error) {
	dirs := slices.DeleteFunc(filepath.SplitList(c.Dirs), func(dir string) bool { return dir == "" })
	for _, dir := range dirs {
		m, err := readModules(filepath.Join(dir, modulesFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return m, err
	}
	detail := "no " + modulesFile
	if len(dirs) > 0 {
		detail += " in " + strings.Join(dirs, ", ")
	}
	return nil, &TokenError{Reason: NoModuleConfig, Detail: detail + " (OCICRYPT_CONFIG=internal allows those in the usual directories)"}
}

func readModules(path string) (*modules, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, &TokenError{Reason: NoModuleConfig, Detail: path, err: err}
	}
	var file struct {
		PKCS11 *modulesYAML `yaml:"pkcs11"`
	}
	if yaml.Unmarshal(data, &file) != nil {
		return nil, badModules(path, errNotYAML)
	}
	if file.PKCS11 == nil {
		return nil, badModules(path, errors.New("there is no pkcs11 in it"))
	}
	m := &modules{source: path, modulesYAML: *file.PKCS11}
	return m, m.check()
}

// errNotYAML quotes nothing: the file may be another one, with a PIN in it, by mistake.
var errNotYAML = errors.New("it is not the YAML of such a file")

func parseModules(source string, data []byte) (*modules, error) {
	m := &modules{source: source}
	if yaml.Unmarshal(data, &m.modulesYAML) != nil {
		return nil, badModules(source, errNotYAML)
	}
	return m, m.check()
}

// check refuses paths that depend on where a program is started.
func (m *modules) check() error {
	for _, path := range slices.Concat(m.Directories, m.Allowed) {
		if !filepath.IsAbs(path) {
			return badModules(m.source, fmt.Errorf("%.80q is no absolute path", path))
		}
	}
	return nil
}

func badModules(source string, err error) error {
	return &TokenError{Reason: BadModuleConfig, Detail: fmt.Sprintf("%s: %.200s", source, oneline.Of(err.Error()))}
}

// yaml returns the configuration as ocicrypt's parameter.
func (m *modules) yaml() ([]byte, error) { return yaml.Marshal(m.modulesYAML) }

// defaultDirectories are ocicrypt's, and two more in which Debian has modules.
func defaultDirectories() []string {
	dirs := []string{"/usr/lib64/pkcs11/", "/usr/lib/pkcs11/", "/usr/local/lib/pkcs11/", "/usr/lib/softhsm/"}
	machine := map[string]string{
		"arm": "arm", "arm64": "aarch64", "amd64": "x86_64", "ppc64le": "powerpc64le", "riscv64": "riscv64", "s390x": "s390x",
	}[runtime.GOARCH]
	if runtime.GOOS == "linux" && machine != "" {
		dir := "/usr/lib/" + machine + "-linux-gnu/"
		dirs = append(dirs, dir, dir+"pkcs11/", dir+"softhsm/")
	}
	return dirs
}

// find returns the path of the library that uri names, if it may be loaded.
func (m *modules) find(uri *pkcs11uri.Pkcs11URI) (string, error) {
	uri.SetModuleDirectories(m.Directories)
	uri.SetAllowedModulePaths(m.Allowed)
	// The library's errors do not tell one case from the other, so it is asked twice.
	uri.SetAllowAnyModule(true)
	path, err := uri.GetModule()
	uri.SetAllowAnyModule(false)
	name, _ := uri.GetQueryAttribute("module-path", false)
	if err != nil {
		if name == "" {
			name, _ = uri.GetQueryAttribute("module-name", false)
			name = fmt.Sprintf("%q in the directories of %s", name, m.source)
		}
		return "", &TokenError{Reason: NoModule, Detail: name}
	}
	if allowed, err := uri.GetModule(); err != nil || allowed != path {
		return "", &TokenError{Reason: ModuleForbidden, Detail: fmt.Sprintf("%s, by %s (allowed-module-paths)", path, m.source)}
	}
	return path, nil
}

// readFile reads a file of at most [keys.MaxFileSize] bytes. Its errors do not name it.
func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, keys.MaxFileSize+1))
	if err != nil {
		return nil, bare(err)
	}
	if len(data) > keys.MaxFileSize {
		return nil, fmt.Errorf("larger than %d bytes", keys.MaxFileSize)
	}
	return data, nil
}

func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
