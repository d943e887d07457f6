package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

func (o RetryOptions) withDefaults() RetryOptions {
	if o.Attempts <= 0 {
		o.Attempts = 6
	}
	if o.Wait <= 0 {
		o.Wait = 500 * time.Millisecond
	}
	if o.MaxWait <= 0 {
		o.MaxWait = time.Minute
	}
	return o
}

// pause returns how long to wait after so many failures.
func (o RetryOptions) pause(failed int) time.Duration {
	wait := o.Wait
	for i := 1; i < failed && wait < o.MaxWait; i++ {
		wait *= 2
	}
	// Not all at the same moment: many clients may have been cut off at once.
	wait = wait*3/4 + time.Duration(rand.Int64N(int64(wait)/2+1))
	return min(wait, o.MaxWait)
}

// tries counts the attempts at one thing.
type tries struct {
	store  *Store
	failed int
}

func (s *Store) tries() *tries { return &tries{store: s} }

// reset forgets the failures, after something was gained.
func (t *tries) reset() { t.failed = 0 }

// again waits until err's cause may be gone and returns nil, or what to return
// instead of trying again.
func (t *tries) again(ctx context.Context, err error) error {
	after, ok := temporary(err)
	if !ok {
		return err
	}
	t.failed++
	if t.failed >= t.store.options.Retry.Attempts {
		return err
	}
	return t.store.pause(ctx, err, t.failed, after)
}

// pause waits after so many failures, and returns err if that would take too long.
func (s *Store) pause(ctx context.Context, err error, failed int, after time.Duration) error {
	o := s.options.Retry
	if after > o.MaxWait {
		return err
	}
	wait := max(o.pause(failed), after)
	if s.options.Notify != nil {
		s.options.Notify(Event{Err: err, Attempt: failed, Wait: wait})
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return s.contextError(ctx, "wait to try again")
	}
}

// temporary says whether trying again may help, and when to at the earliest.
func temporary(err error) (after time.Duration, ok bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.After, e.temporary
	}
	return 0, false
}

// temporaryStatus says whether another attempt may get another status.
func temporaryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, 499:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusInsufficientStorage:
		return false
	}
	return status >= 500
}

// retryAfter returns the pause that a response asks for.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// errSilent is why a request was given up whose peer neither sent nor took anything.
var errSilent = errors.New("nothing was heard in time")

// patience ends a context when a peer is silent for too long. It only runs while
// somebody waits for the peer.
type patience struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newPatience(ctx context.Context, limit time.Duration) *patience {
	p := &patience{limit: limit}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.timer = time.AfterFunc(limit, func() { p.cancel(errSilent) })
	p.timer.Stop()
	return p
}

func (p *patience) start() { p.timer.Reset(p.limit) }

func (p *patience) stop() { p.timer.Stop() }

// end ends the context.
func (p *patience) end() {
	p.timer.Stop()
	p.cancel(context.Canceled)
}
