package pkcs7

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"   // for OAEP
	_ "crypto/sha256" // for OAEP
	_ "crypto/sha512" // for OAEP
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strconv"
	"strings"

	"imgcrypt/layer"
)

// Content encryption algorithms of RFC 5084, which are read, and of RFC 3565 and RFC 8018,
// which are not: CBC has no check against changes, so whether a changed packet opens would
// tell what is in it.
const (
	oidAES128GCM = "2.16.840.1.101.3.4.1.6"
	oidAES192GCM = "2.16.840.1.101.3.4.1.26"
	oidAES256GCM = "2.16.840.1.101.3.4.1.46"
	oidAES128CBC = "2.16.840.1.101.3.4.1.2"
	oidAES192CBC = "2.16.840.1.101.3.4.1.22"
	oidAES256CBC = "2.16.840.1.101.3.4.1.42"
	oidDES3CBC   = "1.2.840.113549.3.7"
)

// oid parses the text of an object identifier that is written here.
func oid(text string) asn1.ObjectIdentifier {
	var id asn1.ObjectIdentifier
	for arc := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(arc)
		if err != nil {
			panic("pkcs7: " + err.Error())
		}
		id = append(id, n)
	}
	return id
}

// content is what was encrypted with AES-GCM.
type content struct {
	keySize    int
	nonce      []byte
	ciphertext []byte
}

// gcmParameters are RFC 5084's. ocicrypt's library tags the nonce in a way of its own, and
// wraps the whole in one more SEQUENCE, which says that it is primitive.
type gcmParameters struct {
	Nonce  asn1.RawValue
	ICVLen int `asn1:"optional,default:12"`
}

const (
	sealKeySize = 16
	gcmNonce    = 12
	gcmTag      = 16

	// maxCiphertext is a secret and its tag, and some more. Each recipient of a packet may
	// cost a decryption of all of it.
	maxCiphertext = layer.MaxSecretSize + 2*gcmTag
)

func parseContent(info encryptedContentInfo) (content, error) {
	var c content
	switch id := info.Algorithm.Algorithm.String(); id {
	case oidAES128GCM:
		c.keySize = 16
	case oidAES192GCM:
		c.keySize = 24
	case oidAES256GCM:
		c.keySize = 32
	case oidAES128CBC, oidAES192CBC, oidAES256CBC, oidDES3CBC:
		return content{}, malformed("content encrypted in a way that is not supported (CBC)")
	default:
		return content{}, malformed("content encrypted in a way that is not supported (%.60s)", id)
	}
	if !c.parseParameters(info.Algorithm.Parameters) {
		return content{}, malformed("damaged parameters of the content's encryption")
	}
	c.ciphertext = info.Content.Bytes
	if info.Content.IsCompound {
		// An OCTET STRING in pieces.
		c.ciphertext = nil
		for rest := info.Content.Bytes; len(rest) > 0 && len(c.ciphertext) <= maxCiphertext; {
			var piece []byte
			var err error
			if rest, err = asn1.Unmarshal(rest, &piece); err != nil {
				return content{}, malformed("damaged content")
			}
			c.ciphertext = append(c.ciphertext, piece...)
		}
	}
	if len(c.ciphertext) > maxCiphertext {
		return content{}, malformed("content over %d bytes", maxCiphertext)
	}
	return c, nil
}

// parseParameters reads the nonce.
func (c *content) parseParameters(raw asn1.RawValue) bool {
	der := raw.FullBytes
	if !raw.IsCompound {
		der = raw.Bytes
	}
	var p gcmParameters
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 {
		return false
	}
	c.nonce = p.Nonce.Bytes
	return p.Nonce.Tag == asn1.TagOctetString && len(c.nonce) == gcmNonce && p.ICVLen == gcmTag
}

// errClosed means that a content key, or the private key, is not the right one.
var errClosed = errors.New("does not open")

// open returns what was encrypted with key, or errClosed.
func (c content) open(key []byte) ([]byte, error) {
	if len(key) != c.keySize {
		return nil, errClosed
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, errClosed
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, errClosed
	}
	plain, err := gcm.Open(nil, c.nonce, c.ciphertext, nil)
	if err != nil {
		return nil, errClosed
	}
	return plain, nil
}

// open returns what env holds for the holder of key, if r is that one. The error is
// errClosed, or wraps [layer.ErrMalformed] if r's key was encrypted in a way that is not
// supported.
func (env *envelope) open(r recipientInfo, key *rsa.PrivateKey) ([]byte, error) {
	var contentKey []byte
	var err error
	switch id := r.algorithm.Algorithm.String(); id {
	case oidRSA:
		// Wrong padding yields a random key, so that no answer is about the padding
		// (RFC 3218).
		//lint:ignore SA1019 it is what other tools write.
		contentKey, err = key.Decrypt(rand.Reader, r.key, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: env.content.keySize})
	case oidRSAOAEP:
		opts, ok := parseOAEP(r.algorithm.Parameters)
		if !ok {
			return nil, malformed("a content key encrypted with parameters that are not supported")
		}
		contentKey, err = key.Decrypt(rand.Reader, r.key, opts)
	default:
		return nil, malformed("a content key encrypted in a way that is not supported (%.60s)", id)
	}
	if err != nil {
		return nil, errClosed
	}
	return env.content.open(contentKey)
}

// oaepParameters are RFC 4055, section 4.1. The default of a hash is SHA-1.
type oaepParameters struct {
	Hash   pkix.AlgorithmIdentifier `asn1:"optional,explicit,tag:0"`
	MGF    pkix.AlgorithmIdentifier `asn1:"optional,explicit,tag:1"`
	Source pkix.AlgorithmIdentifier `asn1:"optional,explicit,tag:2"`
}

func parseOAEP(raw asn1.RawValue) (*rsa.OAEPOptions, bool) {
	opts := &rsa.OAEPOptions{Hash: crypto.SHA1, MGFHash: crypto.SHA1}
	if len(raw.FullBytes) == 0 {
		return opts, true
	}
	var p oaepParameters
	if rest, err := asn1.Unmarshal(raw.FullBytes, &p); err != nil || len(rest) > 0 {
		return nil, false
	}
	ok := true
	if p.Hash.Algorithm != nil {
		opts.Hash, ok = hashOf(p.Hash)
	}
	if p.MGF.Algorithm != nil && ok {
		var hash pkix.AlgorithmIdentifier
		if _, err := asn1.Unmarshal(p.MGF.Parameters.FullBytes, &hash); err != nil || p.MGF.Algorithm.String() != "1.2.840.113549.1.1.8" {
			return nil, false
		}
		opts.MGFHash, ok = hashOf(hash)
	}
	if p.Source.Algorithm != nil && ok {
		if _, err := asn1.Unmarshal(p.Source.Parameters.FullBytes, &opts.Label); err != nil || p.Source.Algorithm.String() != "1.2.840.113549.1.1.9" {
			return nil, false
		}
	}
	return opts, ok
}

func hashOf(id pkix.AlgorithmIdentifier) (crypto.Hash, bool) {
	switch id.Algorithm.String() {
	case "1.3.14.3.2.26":
		return crypto.SHA1, true
	case "2.16.840.1.101.3.4.2.4":
		return crypto.SHA224, true
	case "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256, true
	case "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384, true
	case "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512, true
	}
	return 0, false
}

// sealContent encrypts secret as ocicrypt does.
func sealContent(key, secret []byte) (encryptedContentInfo, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return encryptedContentInfo{}, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return encryptedContentInfo{}, err
	}
	nonce := make([]byte, gcmNonce)
	rand.Read(nonce)
	params, err := asn1.Marshal(gcmParameters{
		Nonce:  asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: asn1.TagOctetString, Bytes: nonce},
		ICVLen: gcmTag,
	})
	if err != nil {
		return encryptedContentInfo{}, err
	}
	// Written in pieces, of which there is one: the library that ocicrypt used before its
	// version 1.2.1 finds no content that is not.
	octets, err := asn1.Marshal(gcm.Seal(nil, nonce, secret, nil))
	if err != nil {
		return encryptedContentInfo{}, err
	}
	return encryptedContentInfo{
		Type: oid(oidData),
		Algorithm: pkix.AlgorithmIdentifier{
			Algorithm:  oid(oidAES128GCM),
			Parameters: asn1.RawValue{Tag: asn1.TagSequence, Bytes: params},
		},
		Content: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: octets},
	}, nil
}
