package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// maxPackets bounds how many packets of one layer a provider is asked about: each may
// start a process or cost money, and anyone can write them.
const maxPackets = 64

// Identity opens the packets of one key provider.
type Identity struct {
	directory *directory
	name      string
	params    [][]byte
}

// Name implements [keys.Named].
func (id *Identity) Name() string { return Name + " " + oneline.Word(id.name) }

// Unwrap implements [keys.Identity]. The provider is asked about its packets in their
// order, until one opens, it turns out that it cannot be asked at all, or refusing them has
// taken as long as one answer may. If none opens, the error is an [*Error], or several that
// are joined. If there is no packet of this
// provider, it is [keys.ErrNoMatch].
func (id *Identity) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	var errs []error
	begin := time.Now()
	for _, p := range packets {
		if p.Scheme != Name+"."+id.name {
			continue
		}
		if n := len(errs); n == maxPackets || n > 0 && time.Since(begin) >= id.directory.config.Timeout {
			errs = append(errs, &Error{Provider: id.name, Op: opUnwrap, Err: fmt.Errorf("it is not asked about more than %d packets", n)})
			break
		}
		secret, err := id.directory.ask(ctx, question{name: id.name, op: opUnwrap, params: id.params, data: p.Data})
		if err == nil {
			return secret, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
		if errors.Is(err, errAway) {
			break
		}
	}
	switch len(errs) {
	case 0:
		return nil, keys.ErrNoMatch
	case 1:
		return nil, errs[0]
	}
	return nil, errors.Join(distinct(errs)...)
}

// distinct drops errors whose text was there before.
func distinct(errs []error) []error {
	seen := make(map[string]bool)
	return slices.DeleteFunc(errs, func(err error) bool {
		text := err.Error()
		defer func() { seen[text] = true }()
		return seen[text]
	})
}

// Parameters implements [keys.Portable].
func (id *Identity) Parameters() (keys.Parameters, error) {
	return parameters(id.name, id.params), nil
}

// unnamed opens the packets of all providers that the user did not name.
type unnamed struct {
	directory *directory
	given     map[string]bool
}

// fallback implements the field of [keys.Scheme].
func (d *directory) fallback(given []keys.Identity) keys.Identity {
	u := &unnamed{directory: d, given: make(map[string]bool)}
	for _, id := range given {
		if p, ok := id.(*Identity); ok {
			u.given[p.name] = true
		}
	}
	return u
}

// Name implements [keys.Named].
func (u *unnamed) Name() string { return Name }

// Unwrap implements [keys.Identity]: each provider that has a packet here is asked
// about its packets, in the order of their first ones.
func (u *unnamed) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	var errs []error
	asked := make(map[string]bool)
	for _, p := range packets {
		name, ok := strings.CutPrefix(p.Scheme, Name+".")
		if !ok || u.given[name] || asked[name] {
			continue
		}
		asked[name] = true
		secret, err := (&Identity{directory: u.directory, name: name}).Unwrap(ctx, packets)
		if err == nil {
			return secret, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, keys.ErrNoMatch
	}
	return nil, errors.Join(errs...)
}
