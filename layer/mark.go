package layer

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strings"
)

// MarksAnnotation names the annotation that holds [Marks]. It is this module's own;
// other tools remove it with all others of its prefix when they decrypt.
const MarksAnnotation = AnnotationPrefix + "imgcrypt.recipients"

// maxMarks bounds the marks of one annotation, as [MaxPackets] does its packets.
const maxMarks = MaxPackets

// Mark says whom one packet was made for, to those who can open the layer and to
// nobody else. It serves packets that do not tell it themselves, like those of key
// providers, so that a recipient who is there already is not added again.
type Mark [16]byte

// Mark returns the mark of the packet p made for the recipient who: an HMAC-SHA-256
// with the layer's key, cut to 16 bytes, over what the mark is for, and over scheme,
// who and the packet, each with its length before it.
func (s Secret) Mark(p Packet, who string) Mark {
	mac := hmac.New(sha256.New, s.Key[:])
	for _, part := range []string{MarksAnnotation, p.Scheme, who, string(p.Data)} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		mac.Write(n[:])
		mac.Write([]byte(part))
	}
	return Mark(mac.Sum(nil)[:16])
}

// Marks are the marks of a layer's packets, in any order.
type Marks []Mark

// ParseMarks reads the value of a [MarksAnnotation]. What is no mark in it is passed
// over, for all that a lost mark can cause is a second packet for the same recipient.
func ParseMarks(value string) Marks {
	var marks Marks
	for text := range strings.SplitSeq(value, ",") {
		if data, err := base64.StdEncoding.DecodeString(text); err == nil && len(data) == len(Mark{}) && len(marks) < maxMarks {
			marks = append(marks, Mark(data))
		}
	}
	return marks
}

// String returns the annotation's value: the marks in base64, joined by commas.
func (m Marks) String() string {
	texts := make([]string, len(m))
	for i, mark := range m {
		texts[i] = base64.StdEncoding.EncodeToString(mark[:])
	}
	return strings.Join(texts, ",")
}

// Contains says whether mark is among m.
func (m Marks) Contains(mark Mark) bool { return slices.Contains(m, mark) }
