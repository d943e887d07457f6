package keys

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"imgcrypt/layer"
)

// Identity is [Parser.Identities] for one key.
func (p *Parser) Identity(s string) (Identity, error) {
	ids, err := p.Identities([]string{s}, nil)
	if err != nil {
		return nil, err
	}
	return ids[0], nil
}

// Identities makes one identity of each key, in their order. A key is a file with
// perhaps a password, as [Parser.Key] reads it, or, for schemes whose keys are no
// files, "SCHEME:WHAT", as in "provider:NAME". Among the keys may be certificates that
// belong to others of them; they make no identity of their own.
//
// recipients are those whose keys these are, as [Parser.Recipient] reads them. Only
// pkcs7 makes use of its certificates; those of other schemes are checked for being
// known schemes. A certificate that belongs to none of the keys is an error.
func (p *Parser) Identities(keys, recipients []string) ([]Identity, error) {
	var certs []certificate
	for _, s := range recipients {
		scheme, path, ok := strings.Cut(s, ":")
		if !ok && !pasted(s) {
			return nil, fmt.Errorf("recipient %.60q names no scheme, as in pkcs7:FILE: %w (known: %s)", s, ErrUnknownScheme, p.known())
		}
		if path == "" || !p.knows(scheme) {
			return nil, fmt.Errorf("recipient of %w %.60q (known: %s)", ErrUnknownScheme, scheme, p.known())
		}
		if scheme != "pkcs7" {
			continue
		}
		data, err := p.files().Read(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = cmp.Or(noPassword(path), err)
		}
		if err != nil {
			return nil, fmt.Errorf("recipient %s: %w", scheme, err)
		}
		own, err := ParseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("recipient %s: %s: %w", scheme, path, err)
		}
		certs = append(certs, certificate{label: path, chain: own})
	}
	type one struct {
		id  Identity // set if the key is no file
		key Key
	}
	var all []one
	for _, s := range keys {
		id, err := p.named(s)
		if err != nil {
			return nil, err
		}
		if id != nil {
			all = append(all, one{id: id})
			continue
		}
		k, err := p.Key(s)
		if err != nil {
			return nil, err
		}
		if own := onlyCertificates(k.Data); len(own) > 0 && len(keys) > 1 {
			certs = append(certs, certificate{label: k.Label, chain: own})
			continue
		}
		all = append(all, one{key: k})
	}
	var ids []Identity
	for _, o := range all {
		if o.id == nil {
			for _, c := range certs {
				o.key.Certificates = append(o.key.Certificates, c.chain...)
			}
			var err error
			if o.id, err = p.IdentityOf(o.key); err != nil {
				return nil, err
			}
			for i := range certs {
				certs[i].used = certs[i].used || certs[i].belongsTo(o.key)
			}
		}
		ids = append(ids, o.id)
	}
	for _, c := range certs {
		if !c.used {
			return nil, fmt.Errorf("%s: %w", c.label, notKey("it is the certificate of none of the private keys that were given"))
		}
	}
	return ids, nil
}

func (p *Parser) knows(scheme string) bool {
	for _, s := range p.Schemes {
		if s.Name == scheme {
			return true
		}
	}
	return false
}

// named returns the identity of a key that is no file, or nil if it is one.
func (p *Parser) named(s string) (Identity, error) {
	name, arg, _ := strings.Cut(s, ":")
	for _, scheme := range p.Schemes {
		if scheme.Name == name && scheme.Named != nil {
			id, err := scheme.Named(arg)
			if err != nil {
				return nil, fmt.Errorf("key %s: %w", name, err)
			}
			return id, nil
		}
		if scheme.Name == name && arg != "" && !exists(name) {
			return nil, fmt.Errorf("key %s: a key is given without its scheme, as in key.pem", name)
		}
	}
	return nil, nil
}

// certificate is what one file of certificates holds.
type certificate struct {
	label string
	chain []*x509.Certificate
	used  bool
}

// belongsTo says whether one of the certificates is that of a key of the file k.
func (c certificate) belongsTo(k Key) bool {
	private, _ := ParsePrivateKeys(k.Data, k.Password)
	for _, cert := range c.chain {
		for _, key := range private {
			if IsCertificateOf(cert, key) {
				return true
			}
		}
	}
	return false
}

// IsCertificateOf says whether cert is that of the private key.
func IsCertificateOf(cert *x509.Certificate, key crypto.PrivateKey) bool {
	signer, ok := key.(crypto.Signer)
	if !ok || cert.PublicKey == nil {
		return false
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

// ParseCertificates reads all certificates of a file, PEM or DER. In PEM, blocks of
// other kinds are passed over. Without an error there is at least one. Errors wrap
// [ErrNotKey].
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	data = bytes.TrimPrefix(data, byteOrderMark())
	all := items(data)
	for _, it := range all {
		if it.form != formCertificate {
			continue
		}
		cert, err := x509.ParseCertificate(it.der)
		if err != nil {
			return nil, notKey("a damaged certificate")
		}
		certs = append(certs, cert)
	}
	if len(certs) > 0 {
		return certs, nil
	}
	for _, it := range all {
		if it.form == formPKIX || it.form == formPKCS1Public {
			return nil, notKey("it holds a public key, and a certificate is needed")
		}
	}
	for _, it := range all {
		if it.form.private() {
			return nil, notKey("it holds a private key, and what is needed is the certificate that belongs to it")
		}
	}
	return nil, notKey("%s", guess(data, all))
}

// onlyCertificates returns the certificates of a file that has no private key.
func onlyCertificates(data []byte) []*x509.Certificate {
	for _, it := range items(bytes.TrimPrefix(data, byteOrderMark())) {
		if it.form.private() {
			return nil
		}
	}
	certs, _ := ParseCertificates(data)
	return certs
}

// IdentityOf makes an identity of k, for all schemes that can use it. If none can,
// the error wraps [ErrNotKey] and says what k is instead; if k is encrypted and its
// password missing or wrong, it wraps [ErrPassword]. Errors begin with k's label.
func (p *Parser) IdentityOf(k Key) (Identity, error) {
	var found []Identity
	var failed error
	for _, scheme := range p.Schemes {
		if scheme.Identity == nil {
			continue
		}
		id, err := scheme.Identity(k)
		switch {
		case err == nil:
			found = append(found, id)
		case !errors.Is(err, ErrNoMatch) && failed == nil:
			failed = err
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return &anyOf{name: k.Label, ids: found}, nil
	case failed != nil:
		return nil, failed
	}
	private, err := ParsePrivateKeys(k.Data, k.Password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.Label, err)
	}
	return nil, fmt.Errorf("%s: %w", k.Label, notKey("%s cannot open anything (known schemes: %s)", kindOf(private[0]), p.known()))
}

// Fallbacks returns the identities that are tried after given, which are all that the
// user named; see [Scheme]. They are ordered by their schemes' names, as schemes is.
func Fallbacks(schemes []Scheme, given []Identity) []Identity {
	var ids []Identity
	for _, s := range schemes {
		if s.Fallback == nil {
			continue
		}
		if id := s.Fallback(given); id != nil {
			ids = append(ids, fallback{id})
		}
	}
	return ids
}

// fallback is an identity that nobody named, and that need not be mentioned where it
// has nothing to do with a layer.
type fallback struct{ Identity }

// Name implements [Named].
func (f fallback) Name() string { return nameOf(f.Identity) }

// anyOf is one key that several schemes can use.
type anyOf struct {
	name string
	ids  []Identity
}

func (a *anyOf) Name() string { return a.name }

func (a *anyOf) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	var errs []error
	for _, id := range a.ids {
		secret, err := id.Unwrap(ctx, packets)
		if err == nil {
			return secret, nil
		}
		if !errors.Is(err, ErrNoMatch) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil, ErrNoMatch
	}
	return nil, errors.Join(errs...)
}

// Parameters implements [Portable], with what each of the schemes needs.
func (a *anyOf) Parameters() (Parameters, error) {
	params := make(Parameters)
	for _, id := range a.ids {
		portable, ok := id.(Portable)
		if !ok {
			continue
		}
		more, err := portable.Parameters()
		if err != nil {
			return nil, err
		}
		params.Merge(more)
	}
	return params, nil
}
