package provider

import (
	"encoding/base64"
	"encoding/hex"
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

func (e *Error) Error() string { return Name + " " + oneline.Word(e.Provider) + ": " + e.Err.Error() }

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

// unreachable makes err one that wraps [keys.ErrUnreachable].
func unreachable(err error) error { return fmt.Errorf("%w: %w", keys.ErrUnreachable, err) }

// away is [unreachable] for errors that would be the same for every other request.
func away(err error) error { return &awayError{unreachable(err)} }

type awayError struct{ error }

func (e *awayError) Unwrap() error { return e.error }

func (e *awayError) Is(target error) bool { return target == errAway }

// Bounds of what of a provider's own words is in an error, in bytes. With all that is around
// them they have to fit into what package keys shows of one attempt.
const (
	gistHead = 80
	gistTail = 180
)

// gist makes a provider's words fit for an error: one printable line of at most some 260
// bytes, of a long text its beginning and its end, and nothing in it of what is to be hidden.
func gist(text string, hidden [][]byte) string {
	text = oneline.Of(strings.ToValidUTF8(redact(text, hidden), "?"))
	if len(text) > gistHead+gistTail {
		head, tail := text[:gistHead], text[len(text)-gistTail:]
		text = strings.ToValidUTF8(head, "") + " … " + strings.ToValidUTF8(tail, "")
	}
	return text
}

// How much of something hidden is to be found in a text, in bytes: all of it, or so much
// in a row. What is shorter than the former is no secret, and would be found by chance.
const (
	leastHidden = 6
	hiddenInRow = 12
)

// redact puts ellipses in the place of all that a text repeats of what is to be hidden. A
// provider may show a part of its request, of the JSON or of what is encoded in it.
func redact(text string, hidden [][]byte) string {
	parts := make(map[string]bool)
	lengths := make(map[int]bool)
	for _, h := range hidden {
		if len(h) < leastHidden {
			continue
		}
		for _, form := range encodings(h) {
			n := min(len(form), hiddenInRow)
			lengths[n] = true
			for i := range len(form) - n + 1 {
				parts[form[i:i+n]] = true
			}
		}
	}
	hide := make([]bool, len(text))
	for at := range len(text) {
		for n := range lengths {
			if at+n <= len(text) && parts[text[at:at+n]] {
				for i := at; i < at+n; i++ {
					hide[i] = true
				}
			}
		}
	}
	var b strings.Builder
	for i := range len(text) {
		if !hide[i] {
			b.WriteByte(text[i])
		} else if i == 0 || !hide[i-1] {
			b.WriteString("…")
		}
	}
	return b.String()
}

// encodings returns the forms in which data may be shown. In base64 it looks different at
// each of three places in what is encoded; the characters that depend on what is around it
// are left out.
func encodings(data []byte) []string {
	forms := []string{string(data), hex.EncodeToString(data), strings.ToUpper(hex.EncodeToString(data))}
	for shift := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), data...))
		text = text[(shift*8+5)/6:]
		if (shift+len(data))%3 != 0 {
			text = text[:len(text)-1]
		}
		forms = append(forms, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return forms
}

// note appends what a provider said to an error.
func note(err error, words string) error {
	if words == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, words)
}
