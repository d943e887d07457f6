package keys

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"

	"imgcrypt/layer"
)

// ErrNoRecipient means that a configuration names nobody to encrypt for.
var ErrNoRecipient = errors.New("no recipient is given")

// Parameters are keys as ocicrypt's configurations carry them: the values of each
// kind. The kinds that ocicrypt defines have constants here; any other kind is the
// name of a key provider, and its values are what was written after the name.
type Parameters map[string][][]byte

// The kinds of parameters, by the scheme that they belong to.
const (
	// ParamPrivateKeys are private keys for jwe and pkcs7. The password of each is
	// at the same place in ParamPasswords, empty if there is none.
	ParamPrivateKeys = "privkeys"
	ParamPasswords   = "privkeys-passwords"
	// ParamPublicKeys are recipients for jwe.
	ParamPublicKeys = "pubkeys"
	// ParamCertificates are recipients for pkcs7, and what helps private keys to
	// find their packets.
	ParamCertificates = "x509s"
	// ParamPGPKeys are secret keyrings, with passwords as for ParamPrivateKeys.
	ParamPGPKeys      = "gpg-privatekeys"
	ParamPGPPasswords = "gpg-privatekeys-passwords"
	// ParamPGPRecipients are names or addresses of keys in the one value of ParamPGPRing.
	ParamPGPRecipients = "gpg-recipients"
	ParamPGPRing       = "gpg-pubkeyringfile"
	// ParamPKCS11Keys are ocicrypt's YAML files that name a key on a token: both
	// recipients and identities. The one value of ParamPKCS11Config is the
	// configuration of modules.
	ParamPKCS11Keys   = "pkcs11-yamls"
	ParamPKCS11Config = "pkcs11-config"
	// ParamPKCS11Public are recipients for pkcs11: public keys.
	ParamPKCS11Public = "pkcs11-pubkeys"
)

// schemeOf returns the name of the scheme that a kind of parameters belongs to.
func schemeOf(kind string) string {
	switch kind {
	case ParamPrivateKeys, ParamPasswords, ParamPublicKeys:
		return "jwe"
	case ParamCertificates:
		return "pkcs7"
	case ParamPGPKeys, ParamPGPPasswords, ParamPGPRecipients, ParamPGPRing:
		return "pgp"
	case ParamPKCS11Keys, ParamPKCS11Config, ParamPKCS11Public:
		return "pkcs11"
	}
	return "provider"
}

// split sorts params by the schemes that they belong to. Kinds without a value are
// left out, and so are schemes that have only kinds that help others.
func split(params Parameters) map[string]Parameters {
	parts := make(map[string]Parameters)
	for kind, values := range params {
		if len(values) == 0 {
			continue
		}
		name := schemeOf(kind)
		if parts[name] == nil {
			parts[name] = make(Parameters)
		}
		parts[name][kind] = values
	}
	for name, part := range parts {
		helpers := []string{ParamPasswords, ParamPGPPasswords, ParamPGPRing, ParamPKCS11Config}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(part)), func(kind string) bool { return !slices.Contains(helpers, kind) }) {
			delete(parts, name)
		}
	}
	return parts
}

// Merge adds what more holds to p: values that p has already once only, keys together
// with their passwords, keyrings as one.
func (p Parameters) Merge(more Parameters) {
	pairs := map[string]string{ParamPrivateKeys: ParamPasswords, ParamPGPKeys: ParamPGPPasswords}
	for _, kind := range slices.Sorted(maps.Keys(more)) {
		switch kind {
		case ParamPasswords, ParamPGPPasswords:
		case ParamPrivateKeys, ParamPGPKeys:
			p.mergePairs(kind, pairs[kind], more)
		case ParamPGPRing:
			p.mergeRing(more[kind])
		case ParamPKCS11Config:
			if len(p[kind]) == 0 {
				p[kind] = slices.Clone(more[kind])
			}
		default:
			for _, value := range more[kind] {
				if indexOf(p[kind], value) < 0 {
					p[kind] = append(p[kind], value)
				}
			}
		}
	}
}

func (p Parameters) mergePairs(kind, passwords string, more Parameters) {
	for i, value := range more[kind] {
		password := []byte{}
		if i < len(more[passwords]) {
			password = more[passwords][i]
		}
		if at := indexOf(p[kind], value); at >= 0 && at < len(p[passwords]) && bytes.Equal(p[passwords][at], password) {
			continue
		}
		p[kind] = append(p[kind], value)
		p[passwords] = append(p[passwords], password)
	}
}

func (p Parameters) mergeRing(values [][]byte) {
	ring := bytes.Join(p[ParamPGPRing], nil)
	for _, value := range values {
		if !bytes.Contains(ring, value) {
			ring = slices.Concat(ring, value)
		}
	}
	p[ParamPGPRing] = [][]byte{ring}
}

func indexOf(values [][]byte, value []byte) int {
	return slices.IndexFunc(values, func(v []byte) bool { return bytes.Equal(v, value) })
}

// FromParameters makes identities of what ocicrypt calls DecryptConfig.Parameters:
// privkeys[i] has the password privkeys-passwords[i], where that list is as long;
// an empty password is none. The keys in privkeys come first, then the schemes by name.
//
// A key that cannot be used never shuts out the others: it becomes an identity whose
// Unwrap returns the reason. Keys of a scheme that is not in schemes become one that
// fails only where it meets a packet of its scheme. More passwords than keys are an
// error, as nobody can tell which belongs to which.
func FromParameters(schemes []Scheme, params Parameters) ([]Identity, error) {
	for _, kinds := range [][2]string{{ParamPrivateKeys, ParamPasswords}, {ParamPGPKeys, ParamPGPPasswords}} {
		if n, passwords := len(params[kinds[0]]), len(params[kinds[1]]); passwords > n && n > 0 {
			return nil, fmt.Errorf("%s: %d passwords for %d keys", kinds[0], passwords, n)
		}
	}
	ids := privateKeys(schemes, params)
	parts := split(params)
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		i := slices.IndexFunc(schemes, func(s Scheme) bool { return s.Name == name })
		switch {
		case name == "jwe" || name == "pkcs7":
			// Their keys are the private keys; the rest only helps.
		case i >= 0 && schemes[i].Identities != nil:
			ids = append(ids, schemes[i].Identities(parts[name])...)
		case i < 0:
			ids = append(ids, unsupported{scheme: name})
		}
	}
	return ids, nil
}

// privateKeys offers the keys that several schemes can use to all of them.
func privateKeys(schemes []Scheme, params Parameters) []Identity {
	parser := Parser{Schemes: schemes}
	var certs []*x509.Certificate
	for _, data := range params[ParamCertificates] {
		// One that cannot be read helps no key, and the key may need no help.
		own, _ := ParseCertificates(data)
		certs = append(certs, own...)
	}
	ids := make([]Identity, 0, len(params[ParamPrivateKeys]))
	for i, k := range params.Keys(ParamPrivateKeys, ParamPasswords) {
		k.Certificates = certs
		id, err := parser.IdentityOf(k)
		if err != nil {
			id = Unusable(fmt.Sprintf("%s[%d]", ParamPrivateKeys, i), err)
		} else {
			// Where it came from is not known here, and its place in a list
			// tells nobody anything.
			id = nameless{id}
		}
		ids = append(ids, id)
	}
	return ids
}

// Keys returns the values of a kind, labelled by it and their place in the list, with
// the passwords at the same places in another kind. An empty password is none.
func (p Parameters) Keys(kind, passwords string) []Key {
	all := make([]Key, len(p[kind]))
	for i, data := range p[kind] {
		all[i] = Key{Label: fmt.Sprintf("%s[%d]", kind, i), Data: data}
		if i < len(p[passwords]) && len(p[passwords][i]) > 0 {
			all[i].Password = p[passwords][i]
		}
	}
	return all
}

// RecipientsFromParameters makes recipients of what ocicrypt calls
// EncryptConfig.Parameters. A key that cannot be used is an error. So is a kind of
// a scheme that is not in schemes, which wraps [ErrUnknownScheme], and an empty
// result, which wraps [ErrNoRecipient].
func RecipientsFromParameters(ctx context.Context, schemes []Scheme, params Parameters) ([]Recipient, error) {
	var recipients []Recipient
	parts := split(params)
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		i := slices.IndexFunc(schemes, func(s Scheme) bool { return s.Name == name })
		if i < 0 {
			return nil, &unsupportedError{scheme: name, what: "recipients"}
		}
		more, err := schemes[i].Recipients(ctx, parts[name])
		if err != nil {
			return nil, fmt.Errorf("recipient %s: %w", name, err)
		}
		recipients = append(recipients, more...)
	}
	if len(recipients) == 0 {
		return nil, ErrNoRecipient
	}
	return recipients, nil
}

// nameless is an identity without its name.
type nameless struct{ Identity }

// Unusable returns an identity that stands for a key that was given but cannot be
// used, called name. Its Unwrap returns err.
func Unusable(name string, err error) Identity { return &unusable{name: name, err: err} }

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
		if (Scheme{Name: u.scheme}).Owns(p.Scheme) {
			return nil, &unsupportedError{scheme: u.scheme, what: "keys"}
		}
	}
	return nil, ErrNoMatch
}

type unsupportedError struct{ scheme, what string }

func (e *unsupportedError) Error() string {
	return fmt.Sprintf("%s %s are not supported here", e.scheme, e.what)
}

func (e *unsupportedError) Is(target error) bool { return target == ErrUnknownScheme }
