package pgp

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/mail"
	"strconv"
	"strings"
)

// listedKey is one key of a keyring, as gpg lists it.
type listedKey struct {
	// validity is 'r' for revoked, 'e' for expired and so on, see GnuPG's doc/DETAILS.
	validity byte
	// capabilities has an E if the key can be encrypted for now, a D if it is disabled.
	capabilities string
	// parts are the primary key and its subkeys.
	parts []listedPart
	// userIDs are the names, the primary one first.
	userIDs []listedUserID
}

type listedPart struct {
	id          uint64
	fingerprint string // hexadecimal, upper case
	// secret says that the secret part is there, or on a smart card, and not only a stub.
	secret bool
}

type listedUserID struct {
	validity byte
	text     string
}

// list runs gpg to list keys; kind is "keys" or "secret-keys". No query lists all. Keys
// that are not there are no error; gist is what gpg said, unless it is just that.
func (g *gpg) list(ctx context.Context, kind string, queries ...string) (found []listedKey, gist string, err error) {
	args := []string{"--batch", "--no-tty", "--utf8-strings", "--no-auto-check-trustdb", "--with-colons", "--fixed-list-mode",
		"--with-fingerprint", "--with-fingerprint", "--status-fd", "2", "--list-" + kind, "--"}
	res, err := g.run(ctx, call{args: append(args, queries...), limit: maxListing})
	if err != nil {
		return nil, "", err
	}
	if !res.unknownKey() {
		gist = res.gist()
	}
	return parseListing(res.stdout), gist, nil
}

// unknownKey says whether gpg reported that a key is not in the keyring, and not that
// something is wrong with that. The gpg of version 1 never does.
func (r result) unknownKey() bool {
	const noPublicKey, noSecretKey = 9, 17 // libgpg-error
	for _, line := range r.status {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "ERROR" || words[1] != "keylist.getkey" {
			continue
		}
		if value, err := strconv.ParseUint(words[2], 10, 32); err == nil {
			code := value & 0xffff
			return code == noPublicKey || code == noSecretKey
		}
	}
	return false
}

// parseListing reads what gpg --with-colons prints. What it does not understand is
// passed over: later versions add to it.
func parseListing(data []byte) []listedKey {
	var all []listedKey
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		field := func(i int) string {
			if i < len(f) {
				return f[i]
			}
			return ""
		}
		if f[0] == "pub" || f[0] == "sec" {
			all = append(all, listedKey{validity: first(field(1)), capabilities: field(11)})
		}
		if len(all) == 0 {
			continue
		}
		key := &all[len(all)-1]
		switch f[0] {
		case "pub", "sec", "sub", "ssb":
			id, err := strconv.ParseUint(field(4), 16, 64)
			if err != nil {
				id = 0
			}
			key.parts = append(key.parts, listedPart{id: id, secret: (f[0] == "sec" || f[0] == "ssb") && field(14) != "#"})
		case "fpr":
			if part := &key.parts[len(key.parts)-1]; part.fingerprint == "" {
				part.fingerprint = strings.ToUpper(field(9))
			}
		case "uid":
			key.userIDs = append(key.userIDs, listedUserID{validity: first(field(1)), text: unescape(field(9))})
		}
	}
	return all
}

func first(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}

// unescape undoes what gpg does to colons and control characters.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if c := strings.IndexByte("nrfvb0", s[i]); c >= 0 {
			b.WriteByte("\n\r\f\v\b\x00"[c])
			continue
		}
		if s[i] == 'x' && i+2 < len(s) {
			if code, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.Write(code)
				i += 2
				continue
			}
		}
		b.WriteByte('\\')
		b.WriteByte(s[i])
	}
	return b.String()
}

// unusable says why nothing can be encrypted for the key, empty if it can.
func (k *listedKey) unusable() string {
	switch {
	case k.validity == 'r':
		return "revoked"
	case k.validity == 'e':
		return "expired"
	case k.validity == 'd' || strings.Contains(k.capabilities, "D"):
		return "disabled"
	case k.validity == 'i':
		return "not valid"
	case !strings.Contains(k.capabilities, "E"):
		return "without a valid subkey for encryption"
	}
	return ""
}

func (k *listedKey) fingerprint() string { return k.parts[0].fingerprint }

// name is the key's primary user id.
func (k *listedKey) name() string {
	if len(k.userIDs) == 0 {
		return ""
	}
	return k.userIDs[0].text
}

// String is a line about the key in an error.
func (k *listedKey) String() string { return keyLine(k.fingerprint(), k.name()) }

// keyLine is a line about a key in an error. Anyone may have written the user id.
func keyLine(fingerprint, userID string) string {
	return fmt.Sprintf("%s %s", fingerprint, quoted(userID))
}

// maxUserID bounds what is shown of a user id, in bytes.
const maxUserID = 200

func quoted(text string) string {
	if len(text) > maxUserID {
		text = text[:maxUserID]
	}
	return strconv.QuoteToGraphic(strings.ToValidUTF8(text, "?"))
}

// address is the mail address in a user id, empty if there is none.
func address(userID string) string {
	if a, err := mail.ParseAddress(userID); err == nil {
		return a.Address
	}
	// GnuPG takes names that are none for mail.
	if i := strings.LastIndexByte(userID, '<'); i >= 0 && strings.HasSuffix(userID, ">") {
		return userID[i+1 : len(userID)-1]
	}
	return ""
}
