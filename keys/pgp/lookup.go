package pgp

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"

	"github.com/ProtonMail/go-crypto/openpgp"

	"imgcrypt/keys"
)

// query is what a user calls a key.
type query struct {
	// id is a fingerprint or key id, hexadecimal in upper case; empty if it cannot be one.
	id string
	// text is a part of a user id; empty if it is only an id.
	text string
}

// maxQuery bounds what a user calls a key, in bytes.
const maxQuery = 1024

func parseQuery(what string) (query, error) {
	text := strings.TrimSpace(what)
	switch {
	case text == "":
		return query{}, fmt.Errorf("%q names no key", what)
	case len(text) > maxQuery || strings.ContainsFunc(text, unicode.IsControl):
		return query{}, fmt.Errorf("%.60q names no key: too long, or not printable", what)
	}
	digits := strings.ToUpper(strings.Join(strings.Fields(text), ""))
	digits, prefixed := strings.CutPrefix(digits, "0X")
	switch len(digits) {
	case 8, 16, 40, 64:
		if isHex(digits) {
			q := query{id: digits}
			// A name may look like an id.
			if !prefixed {
				q.text = text
			}
			return q, nil
		}
	}
	// As gpg understands it.
	if inner, ok := strings.CutPrefix(text, "<"); ok && strings.HasSuffix(inner, ">") && len(inner) > 1 {
		text = strings.TrimSuffix(inner, ">")
	}
	return query{text: text}, nil
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789ABCDEF") == ""
}

// match says how well a query fits a key.
type match int

const (
	noMatch match = iota
	// part: the text is a part of a user id, in upper or lower case.
	part
	// whole: the text is a user id or the address in it, or the key's id is what is given.
	whole
)

func (q query) match(k *listedKey) match {
	if q.id != "" {
		for _, p := range k.parts {
			if p.fingerprint == q.id || len(q.id) == 16 && p.id != 0 && fmt.Sprintf("%016X", p.id) == q.id ||
				len(q.id) == 8 && p.id != 0 && fmt.Sprintf("%08X", uint32(p.id)) == q.id {
				return whole
			}
		}
	}
	best := noMatch
	for _, uid := range k.userIDs {
		// A name that was revoked is one no longer, unless that was the whole key.
		if uid.validity == 'r' && k.validity != 'r' || q.text == "" {
			continue
		}
		if strings.EqualFold(uid.text, q.text) || strings.EqualFold(address(uid.text), q.text) {
			return whole
		}
		if strings.Contains(strings.ToLower(uid.text), strings.ToLower(q.text)) {
			best = part
		}
	}
	return best
}

// search returns the keys that fit a query best. gist is what gpg said if it does not
// list any for another reason than that there is none.
func (g *gpg) search(ctx context.Context, q query) (found []listedKey, gist string, err error) {
	var listed []listedKey
	if q.id != "" {
		listed, gist, err = g.list(ctx, "keys", "0x"+q.id)
	}
	if len(listed) == 0 && q.text != "" && err == nil {
		// The star makes it a part of a user id, whatever it begins with.
		listed, gist, err = g.list(ctx, "keys", "*"+q.text)
	}
	best := part
	for i := range listed {
		switch m := q.match(&listed[i]); {
		case len(listed[i].parts) == 0 || m < best:
		case m > best:
			best, found = m, []listedKey{listed[i]}
		default:
			found = append(found, listed[i])
		}
	}
	return found, gist, err
}

// AmbiguousError says that a name fits several keys.
type AmbiguousError struct {
	// Name is what was given.
	Name string
	// Keys has a line for each key: its fingerprint and its quoted user id.
	Keys []string
}

// maxCandidates bounds the keys that an error lists.
const maxCandidates = 10

// Error lists the keys, one in a line.
func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%.60q fits %d keys, give one's fingerprint:%s", e.Name, len(e.Keys), lines(e.Keys))
}

// Unwrap returns [keys.ErrNotKey].
func (e *AmbiguousError) Unwrap() error { return keys.ErrNotKey }

func lines(all []string) string {
	var b strings.Builder
	for i, line := range all {
		if i == maxCandidates {
			fmt.Fprintf(&b, "\n  and %d more", len(all)-i)
			break
		}
		b.WriteString("\n  ")
		b.WriteString(line)
	}
	return b.String()
}

// lookup returns the one key of the keyring that what names and that can be encrypted
// for. That there is none wraps [ErrNotFound] or [keys.ErrNotKey], that there are
// several is an [*AmbiguousError].
func (g *gpg) lookup(ctx context.Context, what string) (*openpgp.Entity, error) {
	q, err := parseQuery(what)
	if err != nil {
		return nil, err
	}
	if _, err := g.program(ctx); err != nil {
		return nil, fmt.Errorf("%w; a public key in a file needs no gpg: pgp:./FILE", err)
	}
	found, gist, err := g.search(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		if gist != "" {
			gist = " (" + gist + ")"
		}
		return nil, fmt.Errorf("%.60q is %w, nor a file%s: import it, or name a file as pgp:./FILE", what, ErrNotFound, gist)
	}
	var usable []listedKey
	var reasons, names []string
	for _, k := range found {
		if reason := k.unusable(); reason != "" {
			reasons = append(reasons, fmt.Sprintf("%s: %s", &k, reason))
			continue
		}
		usable = append(usable, k)
		names = append(names, k.String())
	}
	switch len(usable) {
	case 1:
		return g.export(ctx, usable[0].fingerprint())
	case 0:
		return nil, fmt.Errorf("%.60q: %w:%s", what, keys.ErrNotKey, lines(reasons))
	}
	return nil, &AmbiguousError{Name: what, Keys: names}
}

// export returns the public key with a fingerprint.
func (g *gpg) export(ctx context.Context, fingerprint string) (*openpgp.Entity, error) {
	if !isHex(fingerprint) || fingerprint == "" {
		return nil, unreachable(fmt.Errorf("it lists a key without a fingerprint"))
	}
	res, err := g.run(ctx, call{limit: maxExport, args: []string{
		"--batch", "--no-tty", "--no-armor", "--export-options", "export-minimal", "--export", "--", "0x" + fingerprint,
	}})
	if err != nil {
		return nil, err
	}
	if res.code != 0 || len(res.stdout) == 0 {
		return nil, unreachable(fmt.Errorf("it does not export %s: %s", fingerprint, res.gist()))
	}
	entity, err := publicKey(res.stdout)
	if err != nil {
		return nil, fmt.Errorf("key %s of the keyring: %w", fingerprint, err)
	}
	if got := strings.ToUpper(hex.EncodeToString(entity.PrimaryKey.Fingerprint)); got != fingerprint {
		return nil, unreachable(fmt.Errorf("asked to export %s it exports %s", fingerprint, got))
	}
	return entity, nil
}
