package pgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/s2k"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

const (
	// maxProtected bounds the keys of one file that a passphrase is tried on. Each
	// costs up to a third of a second.
	maxProtected = 256
	// maxMemory bounds the exponent of the kibibytes that Argon2 takes: 2 GiB, as
	// RFC 9580 recommends; maxWork bounds the kibibytes that it goes over.
	maxMemory = 21
	maxWork   = 4 << maxMemory
	// maxAttempts bounds the operations that a layer's recipients cost.
	maxAttempts = 1024
)

// Identity is the holder of the keys in a secret keyring.
type Identity struct {
	name string
	keys []secretKey
	// locked are keys whose secret part could not be had, and why.
	locked map[uint64]error
}

type secretKey struct {
	*packet.PrivateKey
	entity *openpgp.Entity
}

// newIdentity reads a secret keyring and unlocks the keys for decryption in it. If none
// can be unlocked, the error wraps [keys.ErrPassword], else [keys.ErrNotKey].
func newIdentity(name string, data, passphrase []byte) (*Identity, error) {
	if !isOpenPGP(data) {
		return nil, notKey("no OpenPGP secret key")
	}
	ring, err := readKeys(data)
	if err != nil {
		return nil, err
	}
	if !ring.secret {
		if len(ring.entities) == 0 {
			return nil, ring.problem()
		}
		return nil, notKey("it holds a public OpenPGP key, and opening takes the secret one (gpg --export-secret-keys writes it)")
	}
	id := &Identity{name: name, locked: make(map[uint64]error)}
	protected, failed := 0, error(nil)
	for _, entity := range ring.entities {
		for _, key := range decryptionKeys(entity) {
			if key.Encrypted {
				if protected++; protected > maxProtected {
					return nil, notKey("it holds more than %d keys with a passphrase", maxProtected)
				}
			}
			if err := unlock(key, passphrase); err != nil {
				id.locked[key.KeyId] = err
				// What can be helped by a passphrase is the better reason.
				if failed == nil || errors.Is(err, keys.ErrPassword) && !errors.Is(failed, keys.ErrPassword) {
					failed = err
				}
				continue
			}
			id.keys = append(id.keys, secretKey{PrivateKey: key, entity: entity})
		}
	}
	if len(id.keys) > 0 {
		return id, nil
	}
	switch {
	case failed != nil:
		return nil, failed
	case len(ring.entities) == 0:
		return nil, ring.problem()
	}
	return nil, notKey("it holds no key for decryption")
}

// decryptionKeys returns the keys that others may have encrypted for, also when they
// have expired since.
func decryptionKeys(e *openpgp.Entity) []*packet.PrivateKey {
	var all []*packet.PrivateKey
	self, _ := e.PrimarySelfSignature()
	if e.PrivateKey != nil && self != nil && encrypts(e.PrimaryKey, self) {
		all = append(all, e.PrivateKey)
	}
	for _, sub := range e.Subkeys {
		if sub.PrivateKey != nil && encrypts(sub.PublicKey, sub.Sig) {
			all = append(all, sub.PrivateKey)
		}
	}
	return all
}

// unlock makes a secret key usable.
func unlock(key *packet.PrivateKey, passphrase []byte) error {
	switch {
	case key.Dummy():
		return notKey("the secret part of key %s is not in the file (it may be on a smart card, which the keyring of gpg can use)", hexID(key.KeyId))
	case !key.Encrypted:
		return nil
	case passphrase == nil:
		return fmt.Errorf("the secret key is encrypted: give its %w as KEY:file=PATH, :fd=N or :pass=PASSWORD", keys.ErrPassword)
	}
	if err := checkCost(key); err != nil {
		return err
	}
	if err := safely(errDamaged(), func() error { return key.Decrypt(passphrase) }); err != nil {
		return fmt.Errorf("wrong %w (or a damaged file)", keys.ErrPassword)
	}
	return nil
}

// checkCost refuses passphrases whose test takes too much memory or time. Only Argon2
// can: what the others cost is bounded by their format.
func checkCost(key *packet.PrivateKey) error {
	// The library does not tell the parameters. They are in the packet, which begins
	// with the public key: RFC 9580, sections 5.5.3 and 3.7.1.4.
	public, err := contents(key.PublicKey.Serialize)
	if err != nil {
		return err
	}
	secret, err := contents(key.Serialize)
	if err != nil || len(secret) < len(public) {
		return errDamaged()
	}
	rest := secret[len(public):]
	at := 2 // usage, cipher
	if packet.S2KType(rest[0]) == packet.S2KAEAD {
		at++
	}
	if key.Version >= 6 {
		at += 2 // the lengths of all parameters and of those that follow
	}
	const salt = 16
	if at >= len(rest) || s2k.Mode(rest[at]) != s2k.Argon2S2K {
		return nil
	}
	if at+1+salt+3 > len(rest) {
		return errDamaged()
	}
	passes, memory := int(rest[at+1+salt]), int(rest[at+1+salt+2])
	if memory > maxMemory || passes<<memory > maxWork {
		return notKey("a secret key whose passphrase takes too much work to check")
	}
	return nil
}

// contents returns a packet without its header.
func contents(serialize func(w io.Writer) error) ([]byte, error) {
	var buf bytes.Buffer
	if err := serialize(&buf); err != nil {
		return nil, errDamaged()
	}
	p, err := packet.NewOpaqueReader(&buf).Next()
	if err != nil {
		return nil, errDamaged()
	}
	return p.Contents, nil
}

// Name implements [keys.Named].
func (id *Identity) Name() string { return id.name }

// DamagedError means that a packet names a key but does not open with it: the packet
// was damaged or forged, or is not protected against that. It wraps
// [layer.ErrMalformed].
type DamagedError struct {
	// KeyID is the key's id.
	KeyID uint64
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged pgp packet: it names key %s but does not open with it", hexID(e.KeyID))
}

// Unwrap returns [layer.ErrMalformed].
func (e *DamagedError) Unwrap() error { return layer.ErrMalformed }

func hexID(id uint64) string { return fmt.Sprintf("0x%016X", id) }

// messages takes packets apart. What cannot be read is an error.
func messages(packets []layer.Packet) (all []*message, damage []error) {
	for _, p := range packets {
		if p.Scheme != Name {
			continue
		}
		m, err := parseMessage(p.Data)
		if err != nil {
			damage = append(damage, err)
			continue
		}
		if m.damaged > 0 {
			damage = append(damage, malformed("%d of its recipients cannot be read", m.damaged))
		}
		all = append(all, m)
	}
	return all, damage
}

// summary is one error for several.
func summary(errs []error) error {
	switch n := len(errs); n {
	case 0:
		return keys.ErrNoMatch
	case 1:
		return errs[0]
	default:
		return fmt.Errorf("%w (and %d more such packets)", errs[0], n-1)
	}
}

// Unwrap implements [keys.Identity]. Packets that name one of the identity's keys are
// tried first, then those for recipients who are not named. If none opens, the error is
// a [*DamagedError] if a packet named a key, or says why that key cannot be used; else it
// wraps [layer.ErrMalformed] if a packet is no message that is supported; else it is
// [keys.ErrNoMatch].
func (id *Identity) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	all, damage := messages(packets)
	var failed error
	for _, m := range all {
		for _, r := range m.recipients {
			if err := id.locked[r.KeyId]; err != nil && failed == nil {
				failed = err
			}
		}
	}
	named := func(r *packet.EncryptedKey, key secretKey) bool { return r.KeyId == key.KeyId }
	tried, secret, err := id.try(ctx, all, named)
	if secret != nil || err != nil {
		return secret, err
	}
	if tried != nil {
		failed = &DamagedError{KeyID: tried.KeyId}
	}
	hidden := func(r *packet.EncryptedKey, key secretKey) bool { return r.KeyId == 0 && r.Algo == key.PubKeyAlgo }
	if _, secret, err = id.try(ctx, all, hidden); secret != nil || err != nil {
		return secret, err
	}
	if failed != nil {
		return nil, failed
	}
	return nil, summary(damage)
}

// try opens the messages with the keys that fit their recipients. It returns the first
// recipient that it tried, and neither a secret nor an error if nothing opens.
func (id *Identity) try(ctx context.Context, all []*message, fits func(*packet.EncryptedKey, secretKey) bool) (first *packet.EncryptedKey, secret []byte, err error) {
	attempts := 0
	for _, m := range all {
		for _, r := range m.recipients {
			for _, key := range id.keys {
				if !fits(r, key) {
					continue
				}
				if attempts++; attempts > maxAttempts {
					return first, nil, malformed("more than %d recipients that may be this key", maxAttempts)
				}
				if err := ctx.Err(); err != nil {
					return first, nil, err
				}
				if first == nil {
					first = r
				}
				if secret, err := m.open(r, key.PrivateKey); err == nil {
					return first, secret, nil
				}
			}
		}
	}
	return first, nil, nil
}

// Parameters implements [keys.Portable]: the keys for decryption, without passphrases, and
// of the other keys only their public halves.
func (id *Identity) Parameters() (keys.Parameters, error) {
	var buf bytes.Buffer
	var done []*openpgp.Entity
	for _, key := range id.keys {
		if slices.Contains(done, key.entity) {
			continue
		}
		done = append(done, key.entity)
		var secret []*packet.PrivateKey
		for _, other := range id.keys {
			if other.entity == key.entity {
				secret = append(secret, other.PrivateKey)
			}
		}
		if err := serialize(&buf, key.entity, key.entity.PrimaryIdentity(), secret); err != nil {
			return nil, notKey("%s: %w", title(key.entity), err)
		}
	}
	return keys.Parameters{keys.ParamPGPKeys: {buf.Bytes()}, keys.ParamPGPPasswords: {{}}}, nil
}
