package pgp

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imgcrypt/layer"
)

const (
	// maxRecipients bounds the recipients of a message, and what else may precede its
	// body.
	maxRecipients = 1024
	// maxChunk bounds the exponent of an AEAD chunk's size: 4 MiB, GnuPG's default and
	// RFC 9580's limit. The library allocates a chunk before it reads one.
	maxChunk = 16
)

// message is an encrypted message, taken apart.
type message struct {
	recipients []*packet.EncryptedKey
	// raw are the packets of the recipients, in the same order.
	raw []*packet.OpaquePacket
	// damaged counts the recipients that could not be read.
	damaged int
	data    *packet.OpaquePacket
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("pgp packet: %w: "+format, append([]any{layer.ErrMalformed}, args...)...)
}

// parseMessage reads everything up to the encrypted data. Errors wrap
// [layer.ErrMalformed].
func parseMessage(data []byte) (*message, error) {
	m := new(message)
	packets := packet.NewOpaqueReader(bytes.NewReader(data))
	for range maxRecipients + 1 {
		p, err := packets.Next()
		if err != nil {
			return nil, malformed("no OpenPGP message, or a truncated one")
		}
		switch p.Tag {
		case tagSessionKey:
			parsed, err := p.Parse()
			key, ok := parsed.(*packet.EncryptedKey)
			if err != nil || !ok {
				m.damaged++
				continue
			}
			m.recipients, m.raw = append(m.recipients, key), append(m.raw, p)
		case tagPassphraseKey, tagMarker, tagPadding:
		case tagProtected, tagAEAD:
			m.data = p
			return m, nil
		case tagUnauthenticated:
			return nil, malformed("nothing protects it against changes")
		default:
			if p.Tag < 40 { // RFC 9580, section 4.3: those above are not critical
				return nil, malformed("no encrypted OpenPGP message")
			}
		}
	}
	return nil, malformed("more than %d recipients", maxRecipients)
}

// only returns a message that is for one of the recipients and nobody else.
func (m *message) only(recipient int) ([]byte, error) {
	var buf bytes.Buffer
	for _, p := range []*packet.OpaquePacket{m.raw[recipient], m.data} {
		if err := p.Serialize(&buf); err != nil {
			return nil, malformed("it cannot be written again")
		}
	}
	return buf.Bytes(), nil
}

// KeyIDs returns the ids of the keys that a packet names as its recipients, in its order.
// Recipients who are not named are left out. A packet that cannot be parsed yields none.
func KeyIDs(p layer.Packet) []uint64 {
	if p.Scheme != Name {
		return nil
	}
	m, err := parseMessage(p.Data)
	if err != nil {
		return nil
	}
	var ids []uint64
	for _, r := range m.recipients {
		if r.KeyId != 0 {
			ids = append(ids, r.KeyId)
		}
	}
	return ids
}

var errNotOpened = errors.New("it does not open")

// open decrypts the message by what is in it for one recipient.
func (m *message) open(recipient *packet.EncryptedKey, key *packet.PrivateKey) ([]byte, error) {
	var text []byte
	err := safely(errNotOpened, func() error {
		session := *recipient // decrypting writes to it, and others may be doing the same
		if err := session.Decrypt(key, nil); err != nil {
			return err
		}
		plain, err := m.decrypt(session.CipherFunc, session.Key)
		if err != nil {
			return err
		}
		text, err = content(plain)
		return err
	})
	return text, err
}

// decrypt returns what is in the encrypted data, after it has been authenticated.
func (m *message) decrypt(cipher packet.CipherFunction, key []byte) ([]byte, error) {
	if err := checkBody(m.data, key); err != nil {
		return nil, err
	}
	parsed, err := m.data.Parse()
	if err != nil {
		return nil, err
	}
	body, ok := parsed.(packet.EncryptedDataPacket)
	if !ok {
		return nil, errNotOpened
	}
	r, err := body.Decrypt(cipher, key)
	if err != nil {
		return nil, err
	}
	// It is no larger than the packet.
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	// Only closing it checks its end.
	if err := r.Close(); err != nil {
		return nil, err
	}
	return plain, nil
}

// checkBody refuses what the library does not check before it acts on it.
func checkBody(data *packet.OpaquePacket, key []byte) error {
	head := data.Contents // the version, and in AEAD modes cipher, mode and chunk size
	if len(head) < 4 {
		return errNotOpened
	}
	if data.Tag != tagAEAD {
		return nil
	}
	cipher := packet.CipherFunction(head[1])
	switch cipher {
	case packet.CipherAES128, packet.CipherAES192, packet.CipherAES256:
	default:
		return errNotOpened
	}
	if len(key) != cipher.KeySize() || head[3] > maxChunk {
		return errNotOpened
	}
	return nil
}

// content returns the text of a message that is not encrypted any more, which may be
// compressed and signed.
func content(message []byte) ([]byte, error) {
	// Around the text there are a header, a name and perhaps a signature; a bomb is
	// larger.
	limit := int64(2 * layer.MaxSecretSize)
	details, err := openpgp.ReadMessage(bytes.NewReader(message), nil, nil, &packet.Config{MaxDecompressedMessageSize: &limit})
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(details.UnverifiedBody, layer.MaxSecretSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > layer.MaxSecretSize {
		return nil, malformed("over %d bytes", layer.MaxSecretSize)
	}
	if text == nil { // which would mean that nothing was opened
		text = []byte{}
	}
	return text, nil
}
