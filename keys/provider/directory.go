package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"imgcrypt/internal/oneline"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// directory finds providers in the configuration file.
type directory struct {
	config Config

	mu        sync.Mutex
	providers map[string]asker // nil until the file was read
	broken    map[string]error // those that cannot be used, and why
	silent    map[string]silence
}

// silence is what became of a question that a provider has not answered in time.
type silence struct {
	err   error
	until time.Time // when the provider may be asked again
}

// asker is a way of asking a provider.
type asker interface {
	// ask returns what is in the answer: the packet or the secret. When ctx ends, its
	// error is the cause of that.
	ask(ctx context.Context, q question) ([]byte, error)
}

func newDirectory(c Config) *directory {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 10 * time.Second
	}
	return &directory{config: c, silent: make(map[string]silence)}
}

// attributes is ocicrypt's KeyProviderAttrs.
type attributes struct {
	Command *struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
	} `json:"cmd"`
	GRPC string   `json:"grpc"`
	TLS  *tlsJSON `json:"grpc-tls"`
}

// lookup returns the way of asking a provider. Errors wrap [ErrConfig] and name the file.
func (d *directory) lookup(name string) (asker, error) {
	if d.config.File == "" {
		return nil, fmt.Errorf("no %w is set (OCICRYPT_KEYPROVIDER_CONFIG names its file)", ErrConfig)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.providers == nil {
		if err := d.read(); err != nil {
			return nil, fmt.Errorf("%w %s: %w", ErrConfig, d.config.File, err)
		}
	}
	if p, ok := d.providers[name]; ok {
		return p, nil
	}
	if err, ok := d.broken[name]; ok {
		return nil, fmt.Errorf("%w %s: %s: %w", ErrConfig, d.config.File, oneline.Word(name), err)
	}
	return nil, fmt.Errorf("%w %s: it has no provider %s (it has %s)", ErrConfig, d.config.File, oneline.Word(name), d.names())
}

// names lists what the file has.
func (d *directory) names() string {
	const most = 20
	var all []string
	for _, name := range slices.Sorted(maps.Keys(d.providers)) {
		all = append(all, oneline.Word(name))
	}
	for _, name := range slices.Sorted(maps.Keys(d.broken)) {
		all = append(all, oneline.Word(name))
	}
	switch n := len(all); {
	case n == 0:
		return "none"
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), n-most)
	}
	return strings.Join(all, ", ")
}

// read reads the file. What is wrong with one provider is no matter of the others.
func (d *directory) read() error {
	data, err := readFile(d.config.File)
	if err != nil {
		return err
	}
	var file struct {
		Providers map[string]attributes `json:"key-providers"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("it is malformed: %w", err)
	}
	d.providers, d.broken = make(map[string]asker), make(map[string]error)
	for name, attrs := range file.Providers {
		p, err := attrs.asker(d.config.IdleTimeout)
		if err != nil {
			d.broken[name] = err
			continue
		}
		d.providers[name] = p
	}
	return nil
}

// asker returns the way of asking that a provider has; the first of several, as in ocicrypt.
func (a attributes) asker(idle time.Duration) (asker, error) {
	switch {
	case a.Command != nil && a.Command.Path == "":
		return nil, errors.New("its cmd has no path")
	case a.Command != nil:
		return &command{path: a.Command.Path, args: a.Command.Args}, nil
	case a.GRPC != "":
		t, err := parseTarget(a.GRPC)
		if err != nil {
			return nil, fmt.Errorf("grpc %.100q: %w", a.GRPC, err)
		}
		return newService(t, a.TLS, idle), nil
	}
	return nil, errors.New("it has neither cmd nor grpc")
}

func readFile(path string) ([]byte, error) {
	// Opening a named pipe would wait for whoever writes to it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, bare(err)
	}
	if info.Mode()&(fs.ModeNamedPipe|fs.ModeDevice|fs.ModeSocket) != 0 && !strings.HasPrefix(path, "/dev/fd/") && !strings.HasPrefix(path, "/proc/") {
		return nil, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, bare(err)
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("it is over %d bytes", maxConfig)
	}
	return data, nil
}

// bare strips the path from an error of a file that the caller names.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// ask asks a provider, within its time. Errors are [*Error]s; once ctx has ended, they
// wrap its error.
func (d *directory) ask(ctx context.Context, q question) ([]byte, error) {
	data, err := d.answer(ctx, q)
	if err == nil {
		return data, nil
	}
	if ended := ctx.Err(); ended != nil {
		err = ended
	}
	return nil, &Error{Provider: q.name, Op: q.op, Err: err}
}

// answer asks it, unless it has just been silent: an image of many layers would cost a
// deadline for each of them.
func (d *directory) answer(ctx context.Context, q question) ([]byte, error) {
	p, err := d.lookup(q.name)
	if err != nil {
		return nil, away(err)
	}
	if err := d.silence(q.name); err != nil {
		return nil, err
	}
	late := away(fmt.Errorf("no answer within %v", d.config.Timeout))
	limited, cancel := context.WithTimeoutCause(ctx, d.config.Timeout, late)
	defer cancel()
	data, err := p.ask(limited, q)
	if errors.Is(err, late) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.silent[q.name] = silence{err: err, until: time.Now().Add(d.config.Timeout)}
	}
	return data, err
}

// silence returns what a provider is not asked for, nil if it may be.
func (d *directory) silence(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s, ok := d.silent[name]; ok && time.Now().Before(s.until) {
		return s.err
	}
	return nil
}
