package pgp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Packet types, RFC 9580 section 5.
const (
	tagSessionKey      = 1
	tagPassphraseKey   = 3
	tagSecretKey       = 5
	tagPublicKey       = 6
	tagSecretSubkey    = 7
	tagUnauthenticated = 9
	tagMarker          = 10
	tagTrust           = 12
	tagPublicSubkey    = 14
	tagProtected       = 18
	tagAEAD            = 20
	tagPadding         = 21
)

// Limits on the work that a key asks for. They are above what GnuPG makes.
const (
	// maxKeyPackets bounds the packets of one key: signatures of others, mostly.
	maxKeyPackets = 20_000
	// maxRSABits bounds the modulus of an RSA key, maxDSABits that of DSA and ElGamal
	// keys, which are checked for being prime.
	maxRSABits = 16384
	maxDSABits = 4096
)

// keyring is what a file of keys holds.
type keyring struct {
	entities []*openpgp.Entity
	// secret says whether there is a secret key among them.
	secret bool
	// failed are the reasons why keys could not be read.
	failed []error
}

// problem is why there is no key; there may be none that is known.
func (r *keyring) problem() error {
	if len(r.failed) > 0 {
		return r.failed[0]
	}
	return notKey("an OpenPGP file without a key")
}

const armorStart = "-----BEGIN PGP "

// keyboxMark is at byte 8 of a file of GnuPG's own format.
const keyboxMark = "KBXf"

func isKeybox(data []byte) bool {
	return len(data) > 12 && string(data[8:12]) == keyboxMark
}

// isArmored says whether data has an armoured block, which begins a line.
func isArmored(data []byte) bool {
	i := bytes.Index(data, []byte(armorStart))
	return i == 0 || i > 0 && (data[i-1] == '\n' || i == 3 && data[0] == 0xef)
}

// isOpenPGP says whether data looks like a file of keys or another file of OpenPGP.
func isOpenPGP(data []byte) bool {
	if isArmored(data) || isKeybox(data) {
		return true
	}
	// A binary file begins with a key; nothing else that holds a key begins with a
	// byte this large.
	first, err := packet.NewOpaqueReader(bytes.NewReader(data[:min(len(data), 64)])).Next()
	if first == nil || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false
	}
	return (first.Tag == tagSecretKey || first.Tag == tagPublicKey) &&
		len(first.Contents) > 0 && first.Contents[0] >= 2 && first.Contents[0] <= 6
}

// dearmor returns the binary form of all armoured blocks of keys, or data itself if it
// is binary.
func dearmor(data []byte) ([]byte, error) {
	if !isArmored(data) {
		return data, nil
	}
	var all []byte
	var other string
	for segment := range bytes.SplitSeq(data, []byte(armorStart)) {
		block, err := armor.Decode(bytes.NewReader(append([]byte(armorStart), segment...)))
		if err != nil {
			continue // what is before the first block, or no block
		}
		if block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType {
			other = block.Type
			continue
		}
		body, err := io.ReadAll(block.Body)
		if err != nil {
			return nil, notKey("a damaged armoured OpenPGP key")
		}
		all = append(all, body...)
	}
	switch {
	case len(all) > 0:
		return all, nil
	case other != "":
		return nil, notKey("it holds no OpenPGP key (%.40q)", other)
	}
	return nil, notKey("a damaged armoured OpenPGP key")
}

// readKeys reads keys, armoured or binary. A key that cannot be read does not spoil the
// others. Errors wrap [keys.ErrNotKey].
func readKeys(data []byte) (*keyring, error) {
	if isKeybox(data) {
		return nil, notKey("it is a keybox of GnuPG (gpg --export and gpg --export-secret-keys write keys)")
	}
	data, err := dearmor(data)
	if err != nil {
		return nil, err
	}
	ring := new(keyring)
	packets := packet.NewOpaqueReader(bytes.NewReader(data))
	var group []*packet.OpaquePacket
	finish := func() {
		if len(group) == 0 {
			return
		}
		entity, err := readEntity(group)
		if err != nil {
			ring.failed = append(ring.failed, err)
		} else {
			ring.entities = append(ring.entities, entity)
		}
		group = nil
	}
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			finish()
			return ring, nil
		}
		if err != nil {
			// What follows cannot be told apart, and the key before may lack its end.
			group = nil
			ring.failed = append(ring.failed, notKey("a damaged or truncated OpenPGP key"))
			return ring, nil
		}
		switch p.Tag {
		case tagSecretKey, tagPublicKey:
			finish()
			ring.secret = ring.secret || p.Tag == tagSecretKey
			group = append(group, p)
			continue
		case tagSecretSubkey:
			ring.secret = true
		}
		// Keyrings of GnuPG 1 have trust packets, which mean nothing elsewhere.
		if len(group) > 0 && len(group) <= maxKeyPackets && p.Tag != tagTrust {
			group = append(group, p)
		}
	}
}

// safely runs f, and returns failed where the library panics in it. This is the last
// resort: the library takes for granted how long decrypted session keys are, and that
// the algorithms that a key names fit together, which whoever writes a message or a key
// can arrange otherwise. It gives no way to look at these before, and one bad key or
// packet must not end a program that has others to try.
func safely(failed error, f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = failed
		}
	}()
	return f()
}

func errDamaged() error { return notKey("a damaged OpenPGP key") }

// readEntity makes a key of its packets.
func readEntity(group []*packet.OpaquePacket) (*openpgp.Entity, error) {
	if len(group) > maxKeyPackets {
		return nil, notKey("an OpenPGP key of more than %d packets", maxKeyPackets)
	}
	var buf bytes.Buffer
	for _, p := range group {
		switch p.Tag {
		case tagSecretKey, tagPublicKey, tagSecretSubkey, tagPublicSubkey:
			if err := checkSize(p.Contents); err != nil {
				return nil, err
			}
			markAbsent(p)
		}
		if err := p.Serialize(&buf); err != nil {
			return nil, errDamaged()
		}
	}
	var entity *openpgp.Entity
	err := safely(errDamaged(), func() (err error) {
		entity, err = openpgp.ReadEntity(packet.NewReader(&buf))
		return err
	})
	if err != nil {
		return nil, notKey("an OpenPGP key that cannot be read: %w", err)
	}
	// A name that the key only revokes is none, and the library expects a signature.
	maps.DeleteFunc(entity.Identities, func(_ string, id *openpgp.Identity) bool { return id.SelfSignature == nil })
	return entity, nil
}

// checkSize refuses keys whose mere verification would take long. contents is that of a
// key packet: its version, its time and its algorithm, and then for these algorithms
// the number that is the largest part of the public key.
func checkSize(contents []byte) error {
	const head = 6 // and four more from version 5 on
	if len(contents) < head+2 {
		return errDamaged()
	}
	number := contents[head:]
	if contents[0] >= 5 {
		number = number[min(4, len(number)):]
	}
	if len(number) < 2 {
		return errDamaged()
	}
	limit := maxRSABits
	switch packet.PublicKeyAlgorithm(contents[head-1]) {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly, packet.PubKeyAlgoRSASignOnly:
	case packet.PubKeyAlgoDSA, packet.PubKeyAlgoElGamal:
		limit = maxDSABits
	default:
		return nil
	}
	if bits := int(binary.BigEndian.Uint16(number)); bits > limit {
		return notKey("an OpenPGP key of %d bits", bits)
	}
	return nil
}

// markAbsent turns the stub that stands for a key on a smart card into the one for a
// key that is elsewhere: the library only knows the latter, and gives up on a key that
// has the former. Source: GnuPG's doc/DETAILS, "GNU extensions to the S2K algorithm".
func markAbsent(p *packet.OpaquePacket) {
	const gnu, onCard, elsewhere, maxSerial = 101, 2, 1, 16
	mark := []byte("GNU\x02")
	i := bytes.LastIndex(p.Contents, mark)
	if p.Tag != tagSecretKey && p.Tag != tagSecretSubkey || i < 4 || p.Contents[i-2] != gnu {
		return
	}
	end := i + len(mark)
	if serial := p.Contents[end:]; len(serial) > 1+maxSerial || len(serial) > 0 && int(serial[0]) != len(serial)-1 {
		return
	}
	p.Contents[end-1] = elsewhere
	p.Contents = p.Contents[:end]
}

// publicKey returns the only key of a file. Errors wrap [keys.ErrNotKey].
func publicKey(data []byte) (*openpgp.Entity, error) {
	if !isOpenPGP(data) {
		return nil, notKey("no OpenPGP public key (gpg --armor --export writes one)")
	}
	ring, err := readKeys(data)
	if err != nil {
		return nil, err
	}
	switch n := len(ring.entities); {
	case ring.secret:
		return nil, notKey("it holds a secret key, and a recipient is its public half (gpg --armor --export writes it)")
	case n == 0:
		return nil, ring.problem()
	case n > 1:
		var all []string
		for _, e := range ring.entities {
			all = append(all, title(e))
		}
		return nil, notKey("it holds %d keys; give each in a file of its own:%s", n, lines(all))
	case len(ring.failed) > 0:
		// Whose key that is cannot be known, and somebody may count on it.
		return nil, fmt.Errorf("it holds another key: %w", ring.failed[0])
	}
	return ring.entities[0], nil
}

func fingerprint(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// title is a line about a key in an error.
func title(e *openpgp.Entity) string {
	name := ""
	if id := e.PrimaryIdentity(); id != nil {
		name = id.Name
	}
	return keyLine(fingerprint(e), name)
}
