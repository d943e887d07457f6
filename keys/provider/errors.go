package provider

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
)

// ErrConfig means that the configuration of key providers is missing, cannot be read,
// or does not have the provider that is needed.
var ErrConfig = errors.New("key-provider configuration")

// errAway means that a provider answers nothing, whatever it is asked.
var errAway = errors.New("away")

// Error is about one key provider. It wraps [keys.ErrUnreachable] if the provider could
// not be asked or gave no proper answer, and [ErrConfig] if that is because of the
// configuration. Without either, the provider refused, and the text is what it said.
type Error struct {
	// Provider is the provider's name.
	Provider string
	// Op is what it was asked for, "keywrap" or "keyunwrap".
	Op string
	// Err is why.
	Err error
}

func (e *Error) Error() string { return Name + " " + shown(e.Provider) + ": " + e.Err.Error() }

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

// unreachable makes err one that wraps [keys.ErrUnreachable].
func unreachable(err error) error { return fmt.Errorf("%w: %w", keys.ErrUnreachable, err) }

// away is [unreachable] for errors that would be the same for every other request.
func away(err error) error { return &awayError{unreachable(err)} }

type awayError struct{ error }

func (e *awayError) Unwrap() error { return e.error }

func (e *awayError) Is(target error) bool { return target == errAway }

// Bounds of what of a provider's own words is in an error, in bytes.
const (
	gistHead = 150
	gistTail = 250
)

// gist makes a provider's words fit for an error: one printable line of at most some 400
// bytes, of a long text its beginning and its end, and nothing in it of what is to be hidden.
func gist(text string, hidden [][]byte) string {
	for _, h := range hidden {
		// What is shorter is no secret, and would be found by chance.
		if len(h) < 6 {
			continue
		}
		text = strings.ReplaceAll(text, string(h), "…")
		text = strings.ReplaceAll(text, base64.StdEncoding.EncodeToString(h), "…")
	}
	text = oneline.Of(strings.ToValidUTF8(text, "?"))
	if len(text) > gistHead+gistTail {
		head, tail := text[:gistHead], text[len(text)-gistTail:]
		text = strings.ToValidUTF8(head, "") + " … " + strings.ToValidUTF8(tail, "")
	}
	return text
}

// note appends what a provider said to an error.
func note(err error, words string) error {
	if words == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, words)
}
