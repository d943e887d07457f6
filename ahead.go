package imgcrypt

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// maxTries bounds how often the streaming of one blob into a store is begun, where the
// store says that it was interrupted.
const maxTries = 4

// again calls stream until it is not interrupted any more.
func again[T any](ctx context.Context, stream func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		result, err := stream()
		if !errors.Is(err, ErrInterrupted) || try == maxTries || ctx.Err() != nil {
			return result, err
		}
	}
}

// ahead does, several at a time, the work on layers that an editor is about to ask
// for one after the other. It walks over the image as the editor will, and does the work
// once for each distinct layer that is chosen. A layer that is missing is left to the
// editor, who knows whether that matters.
type ahead struct {
	// plan returns, for one manifest, what returns the work on one of its layers;
	// nil if there is none.
	plan func(d *document) func(l Layer) func(context.Context) error

	seen  map[digest.Digest]bool
	tasks []func(context.Context) error
}

// run does it, with at most jobs layers at a time. With one there is nothing to win.
func (a *ahead) run(ctx context.Context, s Store, root ocispec.Descriptor, sel Selection, jobs int) error {
	if jobs <= 1 {
		return nil
	}
	a.seen = make(map[digest.Digest]bool)
	walk := &editor{store: s, sel: sel, notify: func(Notice) {}, crypt: a}
	if _, err := walk.edit(ctx, root); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(jobs)
	for _, task := range a.tasks {
		group.Go(func() error { return task(ctx) })
	}
	return group.Wait()
}

// manifest implements cryptor; nothing is changed.
func (a *ahead) manifest(_ context.Context, d *document, chosen []Layer) (outcome, error) {
	plan := a.plan(d)
	for _, l := range chosen {
		if a.seen[l.Desc.Digest] {
			continue
		}
		work := plan(l)
		if work == nil {
			continue
		}
		a.seen[l.Desc.Digest] = true
		a.tasks = append(a.tasks, func(ctx context.Context) error {
			err := work(ctx)
			if err == nil || errors.Is(err, ErrNotFound) {
				return nil
			}
			return &LayerError{Index: l.Index, Digest: l.Desc.Digest, Platform: l.Platform, Err: err}
		})
	}
	return outcome{}, nil
}

// index implements cryptor. It is not called, as no manifest changes.
func (a *ahead) index(*document, map[int]change, map[int]change, map[digest.Digest]digest.Digest) (rewritten, error) {
	return rewritten{}, nil
}

func (a *ahead) unchosen(ocispec.Descriptor, string) {}

// tolerates leaves what is missing to the editor.
func (a *ahead) tolerates(*MissingError, ocispec.Descriptor) bool { return true }

// results are what became of layers, by digest.
type results[T any] struct {
	mu  sync.Mutex
	all map[digest.Digest]T
}

func (r *results[T]) get(d digest.Digest) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.all[d]
	return v, ok
}

func (r *results[T]) set(d digest.Digest, v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[digest.Digest]T)
	}
	r.all[d] = v
}

func (r *results[T]) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}
