package layer

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// The names that the format gives to an encrypted layer's descriptor. Source:
// the OCI image encryption proposal as ocicrypt writes it.
const (
	// AnnotationPrefix begins every annotation that belongs to the encryption.
	AnnotationPrefix = "org.opencontainers.image.enc."
	// KeysAnnotationPrefix, followed by a scheme's name, names the annotation
	// that holds the packets of that scheme.
	KeysAnnotationPrefix = AnnotationPrefix + "keys."
	// PublicAnnotation names the annotation that holds the [Public] options.
	PublicAnnotation = AnnotationPrefix + "pubopts"

	// Cipher is the only cipher that the format knows.
	Cipher = "AES_256_CTR_HMAC_SHA256"
)

// Limits on what a descriptor written by others may make its reader hold. They
// are far above what any tool writes.
const (
	// MaxPackets bounds the packets on one descriptor.
	MaxPackets = 1024
	// MaxPacketSize bounds one decoded packet, in bytes.
	MaxPacketSize = 1 << 20
	// MaxSecretSize bounds the JSON of an unwrapped secret, in bytes.
	MaxSecretSize = 64 << 10
)

// ErrMalformed is wrapped by every error about an annotation or a secret that
// cannot be what the format says.
var ErrMalformed = errors.New("malformed")

// Packet is one layer secret, wrapped for one or more recipients of one scheme.
type Packet struct {
	// Scheme is the last part of the annotation's name: "jwe", "pkcs7", "pgp",
	// "pkcs11" or "provider.NAME".
	Scheme string
	// Data is the scheme's own format, already decoded from base64.
	Data []byte
}

// Packets returns the packets of a descriptor's annotations, ordered by scheme
// name and then as they are written. A packet that is not base64, or is over a
// limit, or whose scheme's name does not print, is left out and reported in the
// error, which then names it; the other packets are still returned, so that one
// damaged packet shuts out nobody else.
func Packets(annotations map[string]string) ([]Packet, error) {
	var packets []Packet
	var errs []error
	seen := 0
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		scheme, ok := strings.CutPrefix(name, KeysAnnotationPrefix)
		if !ok || scheme == "" || annotations[name] == "" {
			continue
		}
		if shown(name) != name {
			if seen++; seen <= MaxPackets {
				errs = append(errs, fmt.Errorf("annotation %s: %w: not the name of a scheme", shown(name), ErrMalformed))
			}
			continue
		}
		i := -1
		for text := range strings.SplitSeq(annotations[name], ",") {
			i++
			// Damaged ones count too: of a million commas, each would be one.
			if seen++; seen > MaxPackets {
				errs = append(errs, fmt.Errorf("annotation %s: %w: more than %d packets", shown(name), ErrMalformed, MaxPackets))
				return packets, errors.Join(errs...)
			}
			if len(text) > base64.StdEncoding.EncodedLen(MaxPacketSize) {
				errs = append(errs, fmt.Errorf("annotation %s: packet %d: %w: over %d bytes", shown(name), i, ErrMalformed, MaxPacketSize))
				continue
			}
			data, err := base64.StdEncoding.DecodeString(text)
			if err != nil || len(data) == 0 {
				errs = append(errs, fmt.Errorf("annotation %s: packet %d: %w: not base64", shown(name), i, ErrMalformed))
				continue
			}
			packets = append(packets, Packet{Scheme: scheme, Data: data})
		}
	}
	return packets, errors.Join(errs...)
}

// shown makes the name of an annotation fit for an error: anyone may have written it.
func shown(name string) string {
	if len(name) > 200 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%.100q", name)
	}
	return name
}

// AddPacket returns the value of the annotation for p.Scheme with p appended to
// what the annotation held before.
func AddPacket(before string, p Packet) string {
	text := base64.StdEncoding.EncodeToString(p.Data)
	if before == "" {
		return text
	}
	return before + "," + text
}

// IsAnnotation says whether an annotation of that name belongs to the encryption.
func IsAnnotation(name string) bool { return strings.HasPrefix(name, AnnotationPrefix) }

// Secret is what every packet of a layer wraps: all that is needed to decrypt it.
type Secret struct {
	// Key is the AES-256 key, and the key of the HMAC.
	Key [32]byte
	// Nonce is the initial counter block of AES-CTR.
	Nonce [16]byte
	// Digest is that of the plain blob when this module wrote it. Other tools
	// put something else there, so it is a hint and never a check.
	Digest digest.Digest
}

// secretJSON and publicJSON are the format's own spelling.
type secretJSON struct {
	Key     []byte            `json:"symkey"`
	Digest  string            `json:"digest"`
	Options map[string][]byte `json:"cipheroptions"`
}

type publicJSON struct {
	Cipher  string            `json:"cipher"`
	MAC     []byte            `json:"hmac"`
	Options map[string][]byte `json:"cipheroptions"`
}

// MarshalSecret returns the JSON that packets wrap.
func MarshalSecret(s Secret) ([]byte, error) {
	return json.Marshal(secretJSON{
		Key:     s.Key[:],
		Digest:  s.Digest.String(),
		Options: map[string][]byte{"nonce": s.Nonce[:]},
	})
}

// ParseSecret reads the JSON that a packet wrapped. Its errors wrap
// [ErrMalformed] and never contain any part of the secret.
func ParseSecret(data []byte) (Secret, error) {
	var s Secret
	if len(data) > MaxSecretSize {
		return s, fmt.Errorf("secret: %w: over %d bytes", ErrMalformed, MaxSecretSize)
	}
	var j secretJSON
	if err := json.Unmarshal(data, &j); err != nil {
		// The decoder's error may quote the input, which is secret.
		return s, fmt.Errorf("secret: %w: not the JSON of a layer's secret", ErrMalformed)
	}
	nonce := j.Options["nonce"]
	if len(j.Key) != len(s.Key) {
		return s, fmt.Errorf("secret: %w: key of %d bytes, want %d", ErrMalformed, len(j.Key), len(s.Key))
	}
	if len(nonce) != len(s.Nonce) {
		return s, fmt.Errorf("secret: %w: nonce of %d bytes, want %d", ErrMalformed, len(nonce), len(s.Nonce))
	}
	copy(s.Key[:], j.Key)
	copy(s.Nonce[:], nonce)
	s.Digest = digest.Digest(j.Digest)
	return s, nil
}

// Public is what a layer's descriptor says to everybody about its encryption.
type Public struct {
	// MAC is the HMAC-SHA-256 of the ciphertext. It may be missing or of any
	// length here: [NewOpener] is what refuses it.
	MAC []byte
}

// MarshalPublic returns the value of [PublicAnnotation].
func MarshalPublic(p Public) (string, error) {
	data, err := json.Marshal(publicJSON{Cipher: Cipher, MAC: p.MAC, Options: map[string][]byte{}})
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(data), nil
}

// ParsePublic reads [PublicAnnotation] of a descriptor's annotations. A missing
// annotation yields no MAC, and so a layer that [NewOpener] calls tampered.
func ParsePublic(annotations map[string]string) (Public, error) {
	text := annotations[PublicAnnotation]
	if text == "" {
		return Public{}, nil
	}
	if len(text) > MaxSecretSize {
		return Public{}, fmt.Errorf("annotation %s: %w: over %d bytes", PublicAnnotation, ErrMalformed, MaxSecretSize)
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return Public{}, fmt.Errorf("annotation %s: %w: not base64", PublicAnnotation, ErrMalformed)
	}
	var j publicJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return Public{}, fmt.Errorf("annotation %s: %w: not JSON: %w", PublicAnnotation, ErrMalformed, err)
	}
	if j.Cipher != Cipher {
		return Public{}, fmt.Errorf("annotation %s: %w: cipher %.40q, want %s", PublicAnnotation, ErrMalformed, j.Cipher, Cipher)
	}
	return Public{MAC: j.MAC}, nil
}
