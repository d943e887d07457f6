package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"imgcrypt/layer"
)

// Open returns the secret of the layer with these annotations, unwrapped by the
// first of ids, in their order, that can; [Fallbacks] belong to their end. If none can,
// the error is a [*NoKeyError]. If the annotations hold no packet that can be read, it wraps
// [layer.ErrMalformed] instead, since no key could help. If ctx ends, its error is
// returned.
func Open(ctx context.Context, ids []Identity, annotations map[string]string) (layer.Secret, error) {
	packets, damage := layer.Packets(annotations)
	if len(packets) == 0 {
		if damage == nil {
			damage = fmt.Errorf("annotations %s…: %w: no packet, so no key can open it", layer.KeysAnnotationPrefix, layer.ErrMalformed)
		}
		return layer.Secret{}, oneLine{damage}
	}
	failed := &NoKeyError{Damage: damage}
	for _, p := range packets {
		if !slices.Contains(failed.Schemes, p.Scheme) {
			failed.Schemes = append(failed.Schemes, p.Scheme)
		}
	}
	slices.Sort(failed.Schemes)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return layer.Secret{}, err
		}
		data, err := id.Unwrap(ctx, packets)
		if err == nil {
			var secret layer.Secret
			if secret, err = layer.ParseSecret(data); err == nil {
				return secret, nil
			}
		}
		if _, ok := id.(fallback); ok && errors.Is(err, ErrNoMatch) {
			continue
		}
		failed.Attempts = append(failed.Attempts, Attempt{Name: nameOf(id), Err: err})
	}
	if err := ctx.Err(); err != nil {
		return layer.Secret{}, err
	}
	return layer.Secret{}, failed
}

func nameOf(id Identity) string {
	if n, ok := id.(Named); ok {
		return n.Name()
	}
	return ""
}

// NoKeyError says that no identity opened a layer. [errors.Is] finds [ErrNoKey] in it.
type NoKeyError struct {
	// Attempts has one entry for each identity, in the order in which they were tried.
	Attempts []Attempt
	// Schemes are those of the layer's packets, sorted, each once.
	Schemes []string
	// Damage is about packets that could not be read and so not be tried; nil if
	// all could.
	Damage error
}

// Attempt is one identity that did not open a layer.
type Attempt struct {
	// Name is the identity's name, empty if it has none.
	Name string
	// Err is why. It wraps [ErrNoMatch] if the layer is simply not for this key.
	Err error
}

// Bounds on what an error lists.
const (
	maxSchemes  = 5
	maxAttempts = 20
)

// Error says how many keys were tried and what the layer is encrypted for. If there
// was more than one key, a line follows for each: its name and why it did not open the
// layer; so does one about packets that could not be read.
func (e *NoKeyError) Error() string {
	var b strings.Builder
	var lines []string
	switch n := len(e.Attempts); n {
	case 0:
		b.WriteString("no key was given to open it")
	case 1:
		fmt.Fprintf(&b, "%s does not open it", e.name(0))
		if err := e.Attempts[0].Err; err != nil && !errors.Is(err, ErrNoMatch) {
			for _, text := range reasons(err) {
				// The line has its name already.
				lines = append(lines, strings.TrimPrefix(text, e.name(0)+": "))
			}
		}
	default:
		fmt.Fprintf(&b, "none of the %d keys opens it", n)
		lines = e.attempts()
	}
	fmt.Fprintf(&b, " (encrypted for %s", strings.Join(e.Schemes[:min(len(e.Schemes), maxSchemes)], ", "))
	if more := len(e.Schemes) - maxSchemes; more > 0 {
		fmt.Fprintf(&b, " and %d more schemes", more)
	}
	b.WriteString(")")
	if e.Damage != nil {
		lines = append(lines, reasons(e.Damage)...)
	}
	if len(lines) > maxAttempts {
		lines = append(lines[:maxAttempts], fmt.Sprintf("and %d more", len(lines)-maxAttempts))
	}
	if len(lines) == 1 {
		return b.String() + ": " + lines[0]
	}
	for _, line := range lines {
		b.WriteString("\n  ")
		b.WriteString(line)
	}
	return b.String()
}

// name is what the error calls the key of one attempt.
func (e *NoKeyError) name(i int) string {
	switch name := e.Attempts[i].Name; {
	case name != "":
		return name
	case len(e.Attempts) == 1:
		return "the key"
	}
	return fmt.Sprintf("key %d", i+1)
}

// attempts returns the lines about all keys, in their order. Where they are too many,
// those come first that failed otherwise than by not being the right one.
func (e *NoKeyError) attempts() []string {
	var all, telling, others []string
	for i, a := range e.Attempts {
		if a.Err == nil || errors.Is(a.Err, ErrNoMatch) {
			others = append(others, fmt.Sprintf("%s: %v", e.name(i), ErrNoMatch))
			all = append(all, others[len(others)-1])
			continue
		}
		for _, text := range reasons(a.Err) {
			if name := e.name(i); !strings.HasPrefix(text, name) {
				text = name + ": " + text
			}
			telling = append(telling, text)
			all = append(all, text)
		}
	}
	if len(all) > maxAttempts {
		return append(telling, others...)
	}
	return all
}

// reasons returns the texts of the errors that err joins, each as one line.
func reasons(err error) []string {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) == 0 {
		return []string{oneLine{err}.Error()}
	}
	// fmt.Errorf with several %w has them, too, but a text of its own.
	if errs := joined.Unwrap(); err.Error() == errors.Join(errs...).Error() {
		var lines []string
		for _, one := range errs {
			lines = append(lines, reasons(one)...)
		}
		return lines
	}
	return []string{oneLine{err}.Error()}
}

// Is reports whether target is [ErrNoKey].
func (e *NoKeyError) Is(target error) bool { return target == ErrNoKey }

// Unwrap returns the reasons, without those that only say that a key was not the
// right one.
func (e *NoKeyError) Unwrap() []error {
	var errs []error
	for _, a := range e.Attempts {
		if a.Err != nil && !errors.Is(a.Err, ErrNoMatch) {
			errs = append(errs, a.Err)
		}
	}
	if e.Damage != nil {
		errs = append(errs, e.Damage)
	}
	return errs
}

// maxReason bounds a reason, in bytes: a descriptor can have many things wrong with it.
const maxReason = 400

// oneLine is an error whose text is one line of bounded length.
type oneLine struct{ error }

func (e oneLine) Error() string {
	text := strings.ReplaceAll(e.error.Error(), "\n", "; ")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}

func (e oneLine) Unwrap() error { return e.error }
