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
	tagSignature       = 2
	tagPassphraseKey   = 3
	tagSecretKey       = 5
	tagPublicKey       = 6
	tagSecretSubkey    = 7
	tagUnauthenticated = 9
	tagMarker          = 10
	tagTrust           = 12
	tagUserID          = 13
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
	// maxExponentBits bounds the exponent of an RSA key, maxOrderBits the order of the
	// group of a DSA key: verifying a signature takes a time that is proportional.
	maxExponentBits = 32
	maxOrderBits    = 512
	// maxPartSignatures bounds the signatures by a public key itself on one of its user
	// ids or subkeys, maxSignatures those on all of them.
	maxPartSignatures = 64
	maxSignatures     = 256
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
	ring, groups, err := splitKeys(data)
	if err != nil {
		return nil, err
	}
	ring.read(groups)
	return ring, nil
}

// read makes keys of their packets.
func (r *keyring) read(groups [][]*packet.OpaquePacket) {
	damaged := r.failed // which is at the end of the file
	r.failed = nil
	for _, group := range groups {
		entity, err := readEntity(group)
		if err != nil {
			r.failed = append(r.failed, err)
		} else {
			r.entities = append(r.entities, entity)
		}
	}
	r.failed = append(r.failed, damaged...)
}

// splitKeys returns the packets of each key, and a keyring without keys. Errors wrap
// [keys.ErrNotKey].
func splitKeys(data []byte) (*keyring, [][]*packet.OpaquePacket, error) {
	if isKeybox(data) {
		return nil, nil, notKey("it is a keybox of GnuPG (gpg --export and gpg --export-secret-keys write keys)")
	}
	data, err := dearmor(data)
	if err != nil {
		return nil, nil, err
	}
	ring := new(keyring)
	packets := packet.NewOpaqueReader(bytes.NewReader(data))
	var groups [][]*packet.OpaquePacket
	var group []*packet.OpaquePacket
	finish := func() {
		if len(group) > 0 {
			groups = append(groups, group)
		}
		group = nil
	}
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			finish()
			return ring, groups, nil
		}
		if err != nil {
			// What follows cannot be told apart, and the key before may lack its end.
			ring.failed = append(ring.failed, notKey("a damaged or truncated OpenPGP key"))
			return ring, groups, nil
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
	if _, err := checkSignatures(group); err != nil {
		return nil, err
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
// key packet: its version, its time and its algorithm, and then, for these algorithms, the
// numbers of the public key, each after its length in bits.
func checkSize(contents []byte) error {
	const head = 6 // and four more from version 5 on
	if len(contents) < head+2 {
		return errDamaged()
	}
	var limits []int
	switch packet.PublicKeyAlgorithm(contents[head-1]) {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly, packet.PubKeyAlgoRSASignOnly:
		limits = []int{maxRSABits, maxExponentBits}
	case packet.PubKeyAlgoDSA:
		limits = []int{maxDSABits, maxOrderBits, maxDSABits, maxDSABits}
	case packet.PubKeyAlgoElGamal:
		limits = []int{maxDSABits, maxDSABits, maxDSABits}
	}
	if contents[0] < 4 {
		return nil // the library does not read these versions
	}
	numbers := contents[head:]
	if contents[0] >= 5 {
		numbers = numbers[min(4, len(numbers)):]
	}
	largest := 0
	for i, limit := range limits {
		if len(numbers) < 2 {
			return errDamaged()
		}
		bits := int(binary.BigEndian.Uint16(numbers))
		if i == 0 {
			largest = bits // the others are numbers below it
		}
		if bits > limit || bits > largest {
			return notKey("an OpenPGP key of %d bits (or a part of it)", bits)
		}
		numbers = numbers[min(2+(bits+7)/8, len(numbers)):]
	}
	return nil
}

// checkSignatures refuses public keys with more signatures than a key has, before the
// library verifies them, and returns how many it will verify: of a user id those by the
// key itself, all of a subkey, and all that revoke the key.
func checkSignatures(group []*packet.OpaquePacket) (int, error) {
	if len(group) < 2 {
		return 0, nil
	}
	parsed, err := group[0].Parse()
	primary, ok := parsed.(*packet.PublicKey)
	if err != nil || !ok {
		return 0, nil // it is secret, or cannot be read
	}
	total, here, of := 0, 0, byte(tagPublicKey)
	for _, p := range group[1:] {
		switch p.Tag {
		case tagUserID, tagPublicSubkey, tagSecretSubkey:
			here, of = 0, p.Tag
			continue
		case tagSignature:
		default:
			continue
		}
		parsed, err := p.Parse()
		sig, ok := parsed.(*packet.Signature)
		if err != nil || !ok ||
			of == tagPublicKey && sig.SigType != packet.SigTypeKeyRevocation ||
			of == tagUserID && sig.SigType != packet.SigTypeKeyRevocation && !sig.CheckKeyIdOrFingerprint(primary) {
			continue
		}
		total++
		if here++; here > maxPartSignatures || total > maxSignatures {
			return 0, tooManySignatures()
		}
	}
	return total, nil
}

func tooManySignatures() error {
	return notKey("an OpenPGP key with too many signatures of its own, %d for a part of it or %d in all "+
		"(gpg --export-options export-minimal --export leaves old ones out)", maxPartSignatures, maxSignatures)
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
	ring, groups, err := splitKeys(data)
	if err != nil {
		return nil, err
	}
	// A keyring of many keys is the user's own; a file of one is anybody's.
	if len(groups) > maxSignatures {
		return nil, notKey("it holds %d keys; give each in a file of its own", len(groups))
	}
	total := 0
	for _, group := range groups {
		n, err := checkSignatures(group)
		if err != nil {
			return nil, err
		}
		if total += n; total > maxSignatures {
			return nil, tooManySignatures()
		}
	}
	ring.read(groups)
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
