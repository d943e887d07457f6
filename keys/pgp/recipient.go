package pgp

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// MinBits is the size of the smallest RSA or ElGamal key that is encrypted for. Smaller
// ones still open what others encrypted, as far as Go's RSA supports them.
const MinBits = 2048

// Recipient is the holder of one OpenPGP key.
type Recipient struct {
	entity *openpgp.Entity
	key    *packet.PublicKey
	// ids are those of the keys whose packets are the recipient's: one that was revoked
	// may be in other hands, and one that expired may be gone.
	ids []uint64
}

// newRecipient returns the recipient that is encrypted for at a time. Errors wrap
// [keys.ErrNotKey].
func newRecipient(entity *openpgp.Entity, now time.Time) (*Recipient, error) {
	key, err := encryptionKey(entity, now)
	if err != nil {
		return nil, err
	}
	if bits, err := key.BitLength(); err != nil || isOldAlgorithm(key.PubKeyAlgo) && bits < MinBits {
		return nil, notKey("its encryption key of %d bits is too small (%d is the least)", bits, MinBits)
	}
	r := &Recipient{entity: entity, key: key, ids: []uint64{key.KeyId}}
	for _, sub := range entity.Subkeys {
		if encrypts(sub.PublicKey, sub.Sig) && subkeyLapsed(sub, now) == "" {
			r.ids = append(r.ids, sub.PublicKey.KeyId)
		}
	}
	// Some keys are only found to be impossible when they are used, and that must not
	// be after a layer was encrypted.
	if _, err := r.Wrap(context.Background(), nil); err != nil {
		return nil, notKey("nothing can be encrypted for it: %w", err)
	}
	return r, nil
}

// isOldAlgorithm says whether the bits of a key of this kind are those of a modulus.
func isOldAlgorithm(a packet.PublicKeyAlgorithm) bool {
	return a == packet.PubKeyAlgoRSA || a == packet.PubKeyAlgoRSAEncryptOnly || a == packet.PubKeyAlgoElGamal
}

// encryptionKey returns the newest valid encryption subkey, or the primary key if it
// is for encryption and there is no such subkey, as GnuPG chooses it. Errors wrap
// [keys.ErrNotKey] and say why there is none.
func encryptionKey(e *openpgp.Entity, now time.Time) (*packet.PublicKey, error) {
	self, id := e.PrimarySelfSignature()
	switch {
	case self == nil:
		return nil, notKey("it has no valid self-signature")
	case e.Revoked(now):
		return nil, notKey("it is revoked")
	case id != nil && id.Revoked(now):
		return nil, notKey("its user ids are revoked")
	}
	if why := lapsed(e.PrimaryKey, self, now); why != "" {
		return nil, notKey("it %s", why)
	}
	var newest *packet.PublicKey
	var reasons []string
	for _, sub := range e.Subkeys {
		if !encrypts(sub.PublicKey, sub.Sig) {
			continue
		}
		why := subkeyLapsed(sub, now)
		switch {
		case why != "":
			reasons = append(reasons, fmt.Sprintf("%s %s", hexID(sub.PublicKey.KeyId), why))
		case newest == nil || sub.PublicKey.CreationTime.After(newest.CreationTime):
			newest = sub.PublicKey
		}
	}
	switch {
	case newest != nil:
		return newest, nil
	case encrypts(e.PrimaryKey, self):
		return e.PrimaryKey, nil
	case len(reasons) > 0:
		return nil, notKey("its subkey for encryption %s", strings.Join(reasons[:min(len(reasons), maxCandidates)], ", "))
	}
	return nil, notKey("it has no subkey for encryption")
}

// encrypts says whether a key is meant for encryption by the signature that binds it.
func encrypts(key *packet.PublicKey, sig *packet.Signature) bool {
	if !key.PubKeyAlgo.CanEncrypt() {
		return false
	}
	return !sig.FlagsValid || sig.FlagEncryptCommunications || sig.FlagEncryptStorage
}

// lapsed says why a key cannot be used at a time, empty if it can.
func lapsed(key *packet.PublicKey, sig *packet.Signature, now time.Time) string {
	switch {
	case key.CreationTime.After(now):
		return "is of the future: " + key.CreationTime.UTC().Format(time.DateTime)
	case key.KeyExpired(sig, now):
		end := key.CreationTime.Add(time.Duration(*sig.KeyLifetimeSecs) * time.Second)
		return "expired at " + end.UTC().Format(time.DateTime)
	case sig.SigExpired(now):
		return "has an expired self-signature"
	}
	return ""
}

// subkeyLapsed is lapsed for a subkey, which may also have been revoked.
func subkeyLapsed(sub openpgp.Subkey, now time.Time) string {
	if sub.Revoked(now) {
		return "is revoked"
	}
	return lapsed(sub.PublicKey, sub.Sig, now)
}

// Fingerprint returns the fingerprint of the primary key, hexadecimal in upper case.
func (r *Recipient) Fingerprint() string { return fingerprint(r.entity) }

// Wrap implements [keys.Recipient].
func (r *Recipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	if err := ctx.Err(); err != nil {
		return layer.Packet{}, err
	}
	var data []byte
	err := safely(errDamaged(), func() (err error) {
		data, err = seal(r.key, secret)
		return err
	})
	if err != nil {
		return layer.Packet{}, fmt.Errorf("encrypting for pgp key %s: %w", hexID(r.key.KeyId), err)
	}
	return layer.Packet{Scheme: Name, Data: data}, nil
}

// seal writes a message. The cipher is always the same, whatever a key's preferences
// say: they are from a time in which not everybody knew it.
func seal(to *packet.PublicKey, plain []byte) ([]byte, error) {
	const cipher = packet.CipherAES256
	config := &packet.Config{DefaultCipher: cipher}
	key := make([]byte, cipher.KeySize())
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := packet.SerializeEncryptedKeyAEAD(&buf, to, cipher, false, key, config); err != nil {
		return nil, err
	}
	body, err := packet.SerializeSymmetricallyEncrypted(&buf, cipher, false, packet.CipherSuite{}, key, config)
	if err != nil {
		return nil, err
	}
	text, err := packet.SerializeLiteral(body, true, "", 0)
	if err != nil {
		return nil, err
	}
	if _, err := text.Write(plain); err != nil {
		return nil, err
	}
	// Closing it ends all that is around it.
	if err := text.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Owns implements [keys.Owner]. A packet is the recipient's if it names a key that can be
// encrypted for now.
func (r *Recipient) Owns(p layer.Packet) bool {
	if p.Scheme != Name {
		return false
	}
	return slices.ContainsFunc(KeyIDs(p), func(id uint64) bool { return slices.Contains(r.ids, id) })
}

// Parameters implements [keys.Portable]: a ring with the key and one of its user ids, and
// the address in it. A key without a mail address is an error that wraps
// [keys.ErrNotKey], since ocicrypt cannot use it.
func (r *Recipient) Parameters() (keys.Parameters, error) {
	id, address := r.portableIdentity()
	if id == nil {
		return nil, notKey("%s has no user id with a mail address, by which alone ocicrypt finds a key", title(r.entity))
	}
	var ring bytes.Buffer
	if err := serialize(&ring, r.entity, id, nil); err != nil {
		return nil, notKey("%s: %w", title(r.entity), err)
	}
	return keys.Parameters{
		keys.ParamPGPRecipients: {[]byte(address)},
		keys.ParamPGPRing:       {ring.Bytes()},
	}, nil
}

// portableIdentity returns the user id that ocicrypt can find, the primary one if it
// can: ocicrypt fails if it meets one that is no mail address.
func (r *Recipient) portableIdentity() (*openpgp.Identity, string) {
	ids := []*openpgp.Identity{r.entity.PrimaryIdentity()}
	for _, name := range slices.Sorted(maps.Keys(r.entity.Identities)) {
		ids = append(ids, r.entity.Identities[name])
	}
	for _, id := range ids {
		if id == nil || id.SelfSignature == nil || id.Revoked(time.Now()) {
			continue
		}
		if a, err := mail.ParseAddress(id.Name); err == nil {
			return id, a.Address
		}
	}
	return nil, ""
}

// serialize writes a key with one of its user ids. Secret are those of its keys whose
// secret part is written, too.
func serialize(w *bytes.Buffer, e *openpgp.Entity, id *openpgp.Identity, secret []*packet.PrivateKey) error {
	var errs []error
	try := func(err error) { errs = append(errs, err) }
	write := func(public *packet.PublicKey) {
		for _, key := range secret {
			if key.KeyId == public.KeyId {
				try(key.Serialize(w))
				return
			}
		}
		try(public.Serialize(w))
	}
	write(e.PrimaryKey)
	for _, sig := range e.Revocations {
		try(sig.Serialize(w))
	}
	if e.SelfSignature != nil {
		try(e.SelfSignature.Serialize(w))
	}
	if id != nil {
		try(id.UserId.Serialize(w))
		try(id.SelfSignature.Serialize(w))
	}
	for _, sub := range e.Subkeys {
		write(sub.PublicKey)
		for _, sig := range sub.Revocations {
			try(sig.Serialize(w))
		}
		try(sub.Sig.Serialize(w))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// recipients returns all keys of the ring that a name fits and that can be encrypted
// for: the address or name of a user id, the whole of it, a fingerprint or a key id.
func (r *keyring) recipients(name string) ([]*Recipient, error) {
	q, err := parseQuery(name)
	if err != nil {
		return nil, err
	}
	var found []*Recipient
	var reasons []string
	for _, e := range r.entities {
		if !q.names(e) {
			continue
		}
		recipient, err := newRecipient(e, time.Now())
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", title(e), err))
			continue
		}
		found = append(found, recipient)
	}
	switch {
	case len(found) > 0:
		return found, nil
	case len(reasons) > 0:
		return nil, notKey("%.60q:%s", name, lines(reasons))
	}
	return nil, fmt.Errorf("%.60q is %w", name, ErrNotFound)
}

// names says whether a query is the address or the name in one of a key's user ids, or
// the id of one of its keys.
func (q query) names(e *openpgp.Entity) bool {
	k := listedKey{parts: []listedPart{{id: e.PrimaryKey.KeyId, fingerprint: fingerprint(e)}}}
	for _, sub := range e.Subkeys {
		k.parts = append(k.parts, listedPart{id: sub.PublicKey.KeyId, fingerprint: fmt.Sprintf("%X", sub.PublicKey.Fingerprint)})
	}
	for _, id := range e.Identities {
		uid := listedUserID{text: id.Name}
		if id.Revoked(time.Now()) {
			uid.validity = 'r'
		}
		k.userIDs = append(k.userIDs, uid)
		if q.text != "" && uid.validity == 0 && strings.EqualFold(id.UserId.Name, q.text) {
			return true
		}
	}
	return q.match(&k) == whole
}
