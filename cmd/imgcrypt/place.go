package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/oneline"
	"imgcrypt/store/archive"
	"imgcrypt/store/layout"
	"imgcrypt/store/registry"
)

// placeFlags say how places are reached.
func placeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "plain-http", Usage: "Speak http with registries, never https (loopback ones need no flag)"},
		&cli.BoolFlag{Name: "insecure", Usage: "Accept any certificate of registries"},
		&cli.StringFlag{Name: "ca", Usage: "PEM `FILE` with authorities to trust beside the system's"},
		&cli.StringFlag{Name: "address", Usage: "`SOCKET` of containerd", Value: "/run/containerd/containerd.sock", Sources: cli.EnvVars("CONTAINERD_ADDRESS")},
		&cli.StringFlag{Name: "namespace", Usage: "`NAMESPACE` of containerd", Value: "default", Sources: cli.EnvVars("CONTAINERD_NAMESPACE")},
	}
}

// place is where one image lives.
type place struct {
	imgcrypt.Store
	imgcrypt.Tags
	// key tells a store from others: two places with the same one are in one store.
	key string
	// prefix and ref are what the user wrote: the store, and the image's name in it.
	prefix, ref string
	close       func() error
}

// name is what the image desc at this place is called, for others to use.
func (p *place) name(desc ocispec.Descriptor) string {
	text := p.prefix
	if p.ref != "" && digest.Digest(p.ref).Validate() != nil {
		text += ":" + p.ref
	}
	return text + "@" + desc.Digest.String()
}

// resolve returns the image that the user named.
func (p *place) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	desc, err := p.Resolve(ctx, p.ref)
	if err != nil {
		return desc, fmt.Errorf("%s: %w", p, err)
	}
	return desc, nil
}

func (p *place) String() string {
	switch {
	case p.ref == "":
		return p.prefix
	case digest.Digest(p.ref).Validate() == nil:
		return p.prefix + "@" + p.ref
	}
	return p.prefix + ":" + p.ref
}

// opener opens places.
type opener struct {
	cmd *cli.Command
	// open are the stores that are open, by their keys.
	open map[string]*place
}

func newOpener(cmd *cli.Command) *opener {
	return &opener{cmd: cmd, open: make(map[string]*place)}
}

// place opens the place that text names. One that will be written to is made where it
// can be. A store that is open already is used again; it has to be opened for writing
// first, if it is for both.
func (o *opener) place(ctx context.Context, text string, write bool) (*place, error) {
	scheme, rest, ok := strings.Cut(text, ":")
	switch {
	case text == "":
		return nil, usageError{errors.New("no image is named")}
	case ok && scheme == "docker" && strings.HasPrefix(rest, "//"):
		return o.registry(strings.TrimPrefix(rest, "//"))
	case ok && slices.Contains([]string{"oci", "oci-archive", "docker-archive"}, scheme):
		return o.file(scheme, rest, write)
	case ok && scheme == "containerd":
		return o.containerd(ctx, rest)
	}
	// A bare word would be a repository of Docker Hub, and is more often a file.
	if host, _, ok := strings.Cut(text, "/"); !ok || strings.HasPrefix(host, ".") || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return nil, usageError{fmt.Errorf("%s: neither HOST/REPO nor a place with a scheme, such as oci:DIR or docker://REPO", text)}
	}
	return o.registry(text)
}

// reuse returns p, with the store that is open by its key or the one that open opens.
func (o *opener) reuse(p *place, open func() error) (*place, error) {
	if before := o.open[p.key]; before != nil {
		p.Store, p.Tags = before.Store, before.Tags
		return p, nil
	}
	if err := open(); err != nil {
		return nil, err
	}
	o.open[p.key] = p
	return p, nil
}

// file opens a layout or an archive: PATH or PATH:NAME.
func (o *opener) file(scheme, rest string, write bool) (*place, error) {
	path, ref, _ := strings.Cut(rest, ":")
	if path == "" {
		return nil, usageError{fmt.Errorf("%s: names no file", scheme)}
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	p := &place{prefix: scheme + ":" + path, ref: ref, key: scheme + " " + full}
	if scheme == "docker-archive" {
		// What reads one writes none.
		p.key += fmt.Sprint(" ", write)
	}
	return o.reuse(p, func() error {
		var s interface {
			imgcrypt.Store
			imgcrypt.Tags
			io.Closer
		}
		var err error
		switch {
		case scheme == "oci" && write:
			s, err = layout.Create(path)
		case scheme == "oci":
			s, err = layout.Open(path)
		case scheme == "oci-archive" && write:
			s, err = archive.Create(path)
		case scheme == "oci-archive":
			s, err = archive.Open(path)
		case write:
			s, err = archive.CreateDocker(path)
		default:
			s, err = archive.OpenDocker(path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		p.Store, p.Tags, p.close = s, s, s.Close
		return nil
	})
}

// containerd opens the image store of a containerd, under a lease that keeps what is
// written until it has a name.
func (o *opener) containerd(ctx context.Context, ref string) (*place, error) {
	if ref == "" {
		return nil, usageError{errors.New("containerd: names no image")}
	}
	address, namespace := o.cmd.String("address"), o.cmd.String("namespace")
	p := &place{prefix: "containerd", ref: ref, key: "containerd " + address + " " + namespace}
	return o.reuse(p, func() error {
		if _, err := os.Stat(address); err != nil {
			return fmt.Errorf("cannot access containerd's socket: %w", err)
		}
		client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(10*time.Second))
		if err != nil {
			return fmt.Errorf("is containerd running? %w", err)
		}
		nctx := namespaces.WithNamespace(ctx, namespace)
		lease, err := client.LeasesService().Create(nctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
		if err != nil {
			return errors.Join(err, client.Close())
		}
		p.Store = leased{encryption.NewStore(client.ContentStore()), namespace, lease.ID}
		p.Tags = tagged{encryption.NewTags(client.ImageService()), namespace, lease.ID}
		p.close = func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(nctx), time.Minute)
			defer cancel()
			err := client.LeasesService().Delete(ctx, lease)
			return errors.Join(err, client.Close())
		}
		return nil
	})
}

// leased is containerd's content store, with a namespace and a lease in every context.
type leased struct {
	imgcrypt.Store
	namespace, lease string
}

func (l leased) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return l.Store.Open(inNamespace(ctx, l.namespace, l.lease), desc)
}

func (l leased) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	return l.Store.Put(inNamespace(ctx, l.namespace, l.lease), want, r, refs...)
}

type tagged struct {
	imgcrypt.Tags
	namespace, lease string
}

func (t tagged) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	return t.Tags.Resolve(inNamespace(ctx, t.namespace, t.lease), ref)
}

func (t tagged) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	return t.Tags.Tag(inNamespace(ctx, t.namespace, t.lease), ref, desc)
}

func inNamespace(ctx context.Context, namespace, lease string) context.Context {
	return leases.WithLease(namespaces.WithNamespace(ctx, namespace), lease)
}

func (o *opener) registry(reference string) (*place, error) {
	repository, ref, err := registry.Parse(reference)
	if err != nil {
		return nil, usageError{err}
	}
	p := &place{key: "registry " + repository, prefix: repository, ref: cmp.Or(ref, "latest")}
	return o.reuse(p, func() error {
		s, err := registry.Open(repository, registry.Options{
			PlainHTTP: o.cmd.Bool("plain-http"), Insecure: o.cmd.Bool("insecure"), CAFile: o.cmd.String("ca"), UserAgent: name,
			Notify: func(e registry.Event) {
				fmt.Fprintf(o.cmd.Root().ErrWriter, "%s: note: trying again in %v: %s\n", name, e.Wait.Round(time.Second/10), oneline.Of(e.Err.Error()))
			},
		})
		if err != nil {
			return err
		}
		p.Store, p.Tags, p.close = s, s, s.Close
		return nil
	})
}

// close closes all stores.
func (o *opener) close() error {
	var errs []error
	for _, p := range o.open {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}
