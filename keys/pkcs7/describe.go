package pkcs7

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"imgcrypt/layer"
)

// Bounds on what is printed of a packet that anyone may have written.
const (
	maxDescribed  = 1000 // recipients
	maxNameText   = 256  // bytes of an issuer
	maxSerialText = 40   // digits of a serial number: RFC 5280 allows for no more
)

// Describe names the recipients of a packet in its order by the issuer and the serial number
// of their certificates: issuer="CN=alice,O=Acme" serial=5A3F. The issuer is quoted as Go
// quotes strings, and has the form of RFC 4514; the number is written as openssl writes it.
// Recipients whom the packet names by a key identifier instead are keyid=5A3F…, those whom it
// does not name "[pkcs7]". A packet that cannot be parsed yields one "[pkcs7]".
func Describe(p layer.Packet) []string {
	env, err := parse(p.Data)
	if err != nil || len(env.recipients) == 0 {
		return []string{unnamed}
	}
	var all []string
	for i, r := range env.recipients {
		if i == maxDescribed {
			return append(all, fmt.Sprintf("[and %d more]", len(env.recipients)-i))
		}
		all = append(all, r.String())
	}
	return all
}

const unnamed = "[" + Name + "]"

// String is the recipient as [Describe] prints it.
func (r recipientInfo) String() string {
	switch {
	case r.serial != nil:
		return "issuer=" + strconv.QuoteToGraphic(issuerText(r.issuer)) + " serial=" + serialText(r.serial)
	case len(r.keyID) > 0:
		return "keyid=" + cut(strings.ToUpper(hex.EncodeToString(r.keyID[:min(len(r.keyID), maxSerialText)])), maxSerialText)
	}
	return unnamed
}

// serialText is hexadecimal, of whole bytes.
func serialText(n *big.Int) string {
	digits := strings.ToUpper(new(big.Int).Abs(n).Text(16))
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	if n.Sign() < 0 {
		return "-" + cut(digits, maxSerialText)
	}
	return cut(digits, maxSerialText)
}

// cut shortens a text that is longer than n bytes.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}

// attribute is one of a name's attributes.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// attributeSET is a name for encoding/asn1, which knows a SET by it.
type attributeSET []attribute

// issuerText returns a name in the order and form of RFC 4514, or "?" if it is no name.
func issuerText(der []byte) string {
	var rdns []attributeSET
	if rest, err := asn1.Unmarshal(der, &rdns); err != nil || len(rest) > 0 {
		return "?"
	}
	var b strings.Builder
	for i, rdn := range slices.Backward(rdns) {
		for j, attr := range rdn {
			if b.Len() > maxNameText {
				return cut(b.String(), maxNameText)
			}
			if j > 0 {
				b.WriteString("+")
			} else if i < len(rdns)-1 {
				b.WriteString(",")
			}
			b.WriteString(attr.text())
		}
	}
	return cut(b.String(), maxNameText)
}

// text is TYPE=VALUE.
func (a attribute) text() string {
	id := a.Type.String()
	name := attributeName(id)
	if name == "" {
		name = cut(id, maxNameText)
	}
	var value any
	if _, err := asn1.Unmarshal(a.Value.FullBytes, &value); err == nil {
		if s, ok := value.(string); ok {
			return name + "=" + escape(cut(s, maxNameText))
		}
	}
	return name + "=#" + hex.EncodeToString(a.Value.FullBytes[:min(len(a.Value.FullBytes), maxNameText)])
}

// attributeName returns the short names that openssl prints, too.
func attributeName(id string) string {
	switch id {
	case "2.5.4.3":
		return "CN"
	case "2.5.4.5":
		return "serialNumber"
	case "2.5.4.6":
		return "C"
	case "2.5.4.7":
		return "L"
	case "2.5.4.8":
		return "ST"
	case "2.5.4.9":
		return "street"
	case "2.5.4.10":
		return "O"
	case "2.5.4.11":
		return "OU"
	case "2.5.4.17":
		return "postalCode"
	case "0.9.2342.19200300.100.1.1":
		return "UID"
	case "0.9.2342.19200300.100.1.25":
		return "DC"
	case "1.2.840.113549.1.9.1":
		return "emailAddress"
	}
	return ""
}

// escape marks what would be taken for the end of a value.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `+`, `\+`).Replace(s)
}
