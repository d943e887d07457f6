package pkcs7

import (
	"errors"
	"slices"
)

// maxDepth bounds how deep a packet's elements are nested. Those of a packet that somebody
// can open are not ten deep.
const maxDepth = 32

var errBER = errors.New("not BER")

// normalize rewrites the lengths of a BER element, and of all in it, as DER has them, which
// is what encoding/asn1 reads: CMS allows all of BER, and tools that stream write lengths
// that are not known beforehand. It returns the element and what follows it.
func normalize(ber []byte, depth int) (der, rest []byte, err error) {
	h, ok := parseHeader(ber)
	if !ok || depth > maxDepth {
		return nil, nil, errBER
	}
	rest = ber[h.size:]
	if !h.indefinite {
		if h.length > len(rest) {
			return nil, nil, errBER
		}
		body := rest[:h.length]
		rest = rest[h.length:]
		if !h.constructed {
			return appendElement(nil, ber[0], body), rest, nil
		}
		var all []byte
		for len(body) > 0 {
			var one []byte
			if one, body, err = normalize(body, depth+1); err != nil {
				return nil, nil, err
			}
			all = append(all, one...)
		}
		return appendElement(nil, ber[0], all), rest, nil
	}
	var all []byte
	for len(rest) >= 2 {
		if rest[0] == 0 && rest[1] == 0 {
			return appendElement(nil, ber[0], all), rest[2:], nil
		}
		var one []byte
		if one, rest, err = normalize(rest, depth+1); err != nil {
			return nil, nil, err
		}
		all = append(all, one...)
	}
	return nil, nil, errBER
}

// header is what an element begins with.
type header struct {
	constructed bool
	indefinite  bool // its end is marked by two zeros
	length      int  // of the body; 0 if indefinite
	size        int  // of the header
}

// parseHeader knows no tags of several bytes, since CMS and names have none.
func parseHeader(ber []byte) (header, bool) {
	if len(ber) < 2 || ber[0]&0x1f == 0x1f {
		return header{}, false
	}
	h := header{constructed: ber[0]&0x20 != 0, size: 2}
	switch first := ber[1]; {
	case first < 0x80:
		h.length = int(first)
	case first == 0x80:
		h.indefinite = true
		return h, h.constructed
	default:
		n := int(first & 0x7f)
		if n > 4 || len(ber) < 2+n {
			return header{}, false
		}
		h.size += n
		for _, b := range ber[2 : 2+n] {
			if h.length > maxLength>>8 {
				return header{}, false
			}
			h.length = h.length<<8 | int(b)
		}
	}
	return h, true
}

// maxLength bounds the length of an element, far above that of a packet.
const maxLength = 1 << 30

// appendElement appends an element of a tag of one byte.
func appendElement(to []byte, tag byte, body []byte) []byte {
	to = append(to, tag)
	if n := len(body); n < 0x80 {
		to = append(to, byte(n))
	} else {
		var length []byte
		for ; n > 0; n >>= 8 {
			length = append(length, byte(n))
		}
		slices.Reverse(length)
		to = append(append(to, 0x80|byte(len(length))), length...)
	}
	return append(to, body...)
}
