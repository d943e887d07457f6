package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/internal/oneline"
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
	// save makes what was written last, for stores that have it only then.
	save  func(context.Context) error
	close func() error
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
// can be. A store that is open already is used again.
func (o *opener) place(text string, write bool) (*place, error) {
	scheme, rest, ok := strings.Cut(text, ":")
	switch {
	case text == "":
		return nil, usageError{errors.New("no image is named")}
	case ok && scheme == "docker" && strings.HasPrefix(rest, "//"):
		return o.registry(strings.TrimPrefix(rest, "//"))
	case ok && (scheme == "oci" || scheme == "oci-archive" || scheme == "docker-archive" || scheme == "containerd"):
		return nil, usageError{fmt.Errorf("%s: places of this kind are not built yet", text)}
	}
	return o.registry(text)
}

func (o *opener) registry(reference string) (*place, error) {
	repository, ref, err := registry.Parse(reference)
	if err != nil {
		return nil, usageError{err}
	}
	p := place{key: "registry " + repository, prefix: repository, ref: ref}
	if ref == "" {
		p.ref = "latest"
	}
	if open := o.open[p.key]; open != nil {
		p.Store, p.Tags = open.Store, open.Tags
		return &p, nil
	}
	s, err := registry.Open(repository, registry.Options{
		PlainHTTP: o.cmd.Bool("plain-http"), Insecure: o.cmd.Bool("insecure"), CAFile: o.cmd.String("ca"), UserAgent: name,
		Notify: func(e registry.Event) {
			fmt.Fprintf(o.cmd.Root().ErrWriter, "%s: note: trying again in %v: %s\n", name, e.Wait.Round(1e8), oneline.Of(e.Err.Error()))
		},
	})
	if err != nil {
		return nil, err
	}
	p.Store, p.Tags, p.close = s, s, s.Close
	o.open[p.key] = &p
	return &p, nil
}

// close closes all stores.
func (o *opener) close() {
	for _, p := range o.open {
		if p.close != nil {
			_ = p.close()
		}
	}
}
