package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"imgcrypt/layer"
)

// ErrNoRecipient means that a configuration names nobody to encrypt for.
var ErrNoRecipient = errors.New("no recipient is given")

// The names that ocicrypt's configurations give to kinds of keys.
const (
	paramPrivateKeys   = "privkeys"
	paramPasswords     = "privkeys-passwords"
	paramPGPKeys       = "gpg-privatekeys"
	paramPGPPasswords  = "gpg-privatekeys-passwords"
	paramPKCS11Keys    = "pkcs11-yamls"
	paramPKCS11Config  = "pkcs11-config"
	paramX509          = "x509s"
	paramPublicKeys    = "pubkeys"
	paramPGPRecipients = "gpg-recipients"
	paramPGPRing       = "gpg-pubkeyringfile"
	paramPKCS11Public  = "pkcs11-pubkeys"
)

// FromParameters makes identities of what ocicrypt calls DecryptConfig.Parameters:
// privkeys[i] has the password privkeys-passwords[i], where that list is as long;
// an empty password is none.
//
// A key that cannot be used never shuts out the others: it becomes an identity whose
// Unwrap returns the reason. A key of a scheme that is not in schemes, or a key
// provider, becomes one that fails only where it meets a packet of its scheme. More
// passwords than keys are an error, as nobody can tell which belongs to which.
func FromParameters(schemes []Scheme, params map[string][][]byte) ([]Identity, error) {
	var ids []Identity
	for _, kind := range slices.Sorted(maps.Keys(params)) {
		values := params[kind]
		if len(values) == 0 {
			continue
		}
		var more []Identity
		var err error
		switch kind {
		case paramPrivateKeys:
			more, err = privateKeys(schemes, kind, values, params[paramPasswords])
		case paramPGPKeys:
			more, err = schemeKeys(schemes, "pgp", kind, values, params[paramPGPPasswords])
		case paramPKCS11Keys:
			more, err = schemeKeys(schemes, "pkcs11", kind, values, nil)
		case paramPasswords, paramPGPPasswords, paramPKCS11Config, paramX509:
			// They only help other kinds.
		default:
			more = []Identity{unsupported{scheme: "provider." + kind}}
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, more...)
	}
	return ids, nil
}

func privateKeys(schemes []Scheme, kind string, values, passwords [][]byte) ([]Identity, error) {
	if len(passwords) > len(values) {
		return nil, fmt.Errorf("%s: %d passwords for %d keys", kind, len(passwords), len(values))
	}
	parser := Parser{Schemes: schemes}
	ids := make([]Identity, len(values))
	for i, data := range values {
		k := Key{Label: fmt.Sprintf("%s[%d]", kind, i), Data: data}
		if i < len(passwords) && len(passwords[i]) > 0 {
			k.Password = passwords[i]
		}
		id, err := parser.IdentityOf(k)
		if err != nil {
			id = &unusable{name: k.Label, err: err}
		} else {
			// Where it came from is not known here, and its place in a list
			// tells nobody anything.
			id = nameless{id}
		}
		ids[i] = id
	}
	return ids, nil
}

func schemeKeys(schemes []Scheme, name, kind string, values, passwords [][]byte) ([]Identity, error) {
	for _, s := range schemes {
		if s.Name == name {
			return privateKeys([]Scheme{s}, kind, values, passwords)
		}
	}
	return []Identity{unsupported{scheme: name}}, nil
}

// RecipientsFromParameters makes recipients of what ocicrypt calls
// EncryptConfig.Parameters. A key that cannot be used is an error. So is a kind of
// a scheme that is not in schemes, which wraps [ErrUnknownScheme], and an empty
// result, which wraps [ErrNoRecipient].
func RecipientsFromParameters(schemes []Scheme, params map[string][][]byte) ([]Recipient, error) {
	var recipients []Recipient
	for _, kind := range slices.Sorted(maps.Keys(params)) {
		values := params[kind]
		if len(values) == 0 {
			continue
		}
		name := ""
		switch kind {
		case paramPublicKeys:
			name = "jwe"
		case paramX509:
			name = "pkcs7"
		case paramPGPRecipients:
			return nil, &unsupportedError{scheme: "pgp", what: "recipients"}
		case paramPKCS11Public, paramPKCS11Keys:
			return nil, &unsupportedError{scheme: "pkcs11", what: "recipients"}
		case paramPGPRing, paramPKCS11Config:
			// They only help other kinds.
			continue
		default:
			return nil, &unsupportedError{scheme: "provider." + kind, what: "recipients"}
		}
		i := slices.IndexFunc(schemes, func(s Scheme) bool { return s.Name == name })
		if i < 0 {
			return nil, &unsupportedError{scheme: name, what: "recipients"}
		}
		for n, data := range values {
			r, err := schemes[i].RecipientData(fmt.Sprintf("%s[%d]", kind, n), data)
			if err != nil {
				return nil, fmt.Errorf("recipient %s: %w", name, err)
			}
			recipients = append(recipients, r)
		}
	}
	if len(recipients) == 0 {
		return nil, ErrNoRecipient
	}
	return recipients, nil
}

// nameless is an identity without its name.
type nameless struct{ Identity }

// unusable is a key that was given but cannot be used.
type unusable struct {
	name string
	err  error
}

func (u *unusable) Name() string { return u.name }

func (u *unusable) Unwrap(context.Context, []layer.Packet) ([]byte, error) { return nil, u.err }

// unsupported is a key of a scheme that is not here.
type unsupported struct{ scheme string }

func (u unsupported) Name() string { return u.scheme }

func (u unsupported) Unwrap(_ context.Context, packets []layer.Packet) ([]byte, error) {
	for _, p := range packets {
		if p.Scheme == u.scheme {
			return nil, &unsupportedError{scheme: u.scheme, what: "keys"}
		}
	}
	return nil, ErrNoMatch
}

type unsupportedError struct{ scheme, what string }

func (e *unsupportedError) Error() string {
	return fmt.Sprintf("%s %s are not supported yet", e.scheme, e.what)
}

func (e *unsupportedError) Is(target error) bool { return target == ErrUnknownScheme }
