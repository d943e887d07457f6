package pgp

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"imgcrypt/layer"
)

// names knows what the keys of the user's keyring are called. The keyring is listed once,
// when the first name is asked for.
type names struct {
	gpg  *gpg
	once sync.Once
	of   map[uint64]string
}

// describe names the recipients of a packet in its order: their key ids, as in
// "0x0123456789ABCDEF", or what the keyring calls them; "[pgp]" for one who is not named.
// A packet that cannot be parsed yields one "[pgp]".
func (n *names) describe(p layer.Packet) []string {
	m, err := parseMessage(p.Data)
	if err != nil || len(m.recipients) == 0 {
		return []string{"[pgp]"}
	}
	all := make([]string, len(m.recipients))
	for i, r := range m.recipients {
		switch name := n.name(r.KeyId); {
		case r.KeyId == 0:
			all[i] = "[pgp]"
		case name != "":
			all[i] = name
		default:
			all[i] = hexID(r.KeyId)
		}
	}
	return all
}

// name returns what the keyring calls a key, empty if it does not know it or cannot be
// asked: the name is a convenience.
func (n *names) name(id uint64) string {
	if !n.gpg.config.ShowAddresses || id == 0 {
		return ""
	}
	n.once.Do(func() {
		n.of = make(map[uint64]string)
		listed, _, err := n.gpg.list(context.Background(), "keys")
		if err != nil {
			return
		}
		for i := range listed {
			name := listed[i].name()
			if a := address(name); a != "" {
				name = a
			}
			if name == "" {
				continue
			}
			for _, part := range listed[i].parts {
				n.of[part.id] = printable(name)
			}
		}
	})
	return n.of[id]
}

// printable quotes what would not print as one word: a name with spaces is one, too.
func printable(name string) string {
	odd := func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == ',' || r == '"' }
	if len(name) > maxUserID {
		name = name[:maxUserID]
	}
	name = strings.ToValidUTF8(name, "?")
	if strings.ContainsFunc(name, odd) {
		return strconv.QuoteToGraphic(name)
	}
	return name
}
