package pkcs11

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"hash"
	"math/big"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// The sizes of the smallest and the largest RSA key that is encrypted for. Others still open what others
// encrypted.
const (
	MinRSABits = 2048
	maxRSABits = 16384
)

// Recipient is the holder of the private half of one public key, on a token or not.
type Recipient struct {
	id   string
	key  *rsa.PublicKey
	hash string
}

// NewRecipient returns the recipient with this public key, which must be RSA. hash is that of [Config.OAEPHash]. Errors
// about the key wrap [keys.ErrNotKey].
func NewRecipient(key keys.PublicKey, hash string) (*Recipient, error) {
	hash, err := hashName(hash)
	if err != nil {
		return nil, err
	}
	public, ok := key.Key.(*rsa.PublicKey)
	if !ok {
		return nil, notKey("a key of this kind cannot be encrypted for (RSA keys can)")
	}
	return newRecipient(public, hash)
}

func newRecipient(key *rsa.PublicKey, hash string) (*Recipient, error) {
	if n := key.N.BitLen(); n < MinRSABits || n > maxRSABits {
		return nil, notKey(fmt.Sprintf("an RSA key of %d bits cannot be encrypted for (%d to %d can)", n, MinRSABits, maxRSABits))
	}
	hash, err := fit(key, hash)
	if err != nil {
		return nil, err
	}
	r := &Recipient{id: keyID(key), key: key, hash: hash}
	// Some keys are only found to be impossible when they are used, and that must not be after a layer was encrypted.
	if _, err := r.Wrap(context.Background(), nil); err != nil {
		return nil, notKey("nothing can be encrypted for it")
	}
	return r, nil
}

// fit returns the hash to use: what was asked for, else SHA-256 if a layer's secret fits, else SHA-1. With it, a secret fits any key
// that is large enough at all, and in RSA-OAEP nothing depends on its being free of collisions.
func fit(key *rsa.PublicKey, hash string) (string, error) {
	if hash != "" && hash != tokenproto.SHA256 {
		return hash, nil
	}
	secret, err := layer.MarshalSecret(layer.Secret{Digest: digest.FromString("")})
	if err != nil {
		return "", err
	}
	switch room := key.Size() - 2*sha256.Size - 2; {
	case room >= len(secret):
		return tokenproto.SHA256, nil
	case hash == tokenproto.SHA256:
		return "", notKey(fmt.Sprintf("an RSA key of %d bits has no room for a layer's secret with SHA-256 (OCICRYPT_OAEP_HASHALG=sha1 makes some)", key.N.BitLen()))
	}
	return tokenproto.SHA1, nil
}

// hashName returns the hash as packets have it. ocicrypt takes capitals, too.
func hashName(text string) (string, error) {
	name := strings.ToLower(text)
	if name == "" || name == tokenproto.SHA1 || name == tokenproto.SHA256 {
		return name, nil
	}
	return "", fmt.Errorf("OAEP hash %.40q (OCICRYPT_OAEP_HASHALG) is neither %s nor %s", text, tokenproto.SHA1, tokenproto.SHA256)
}

func keyID(key *rsa.PublicKey) string {
	return tokenproto.KeyID(key.N.Bytes(), big.NewInt(int64(key.E)).Bytes())
}

// KeyID returns the "kid" in the recipient's packets.
func (r *Recipient) KeyID() string { return r.id }

// Wrap implements [keys.Recipient].
func (r *Recipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	if err := ctx.Err(); err != nil {
		return layer.Packet{}, err
	}
	h := map[string]func() hash.Hash{tokenproto.SHA1: sha1.New, tokenproto.SHA256: sha256.New}[r.hash]()
	blob, err := rsa.EncryptOAEP(h, rand.Reader, r.key, secret, nil)
	if err != nil {
		return layer.Packet{}, fmt.Errorf("encrypting for pkcs11 key %s (%d bits, %s): %w", r.id, r.key.N.BitLen(), r.hash, err)
	}
	return marshal(blob, r.hash, r.id)
}

// Owns implements [keys.Owner].
func (r *Recipient) Owns(p layer.Packet) bool {
	return p.Scheme == Name && slices.Contains(keyIDs(p), r.id)
}

// Parameters implements [keys.Portable]: a PKIX public key.
func (r *Recipient) Parameters() (keys.Parameters, error) {
	data, err := x509.MarshalPKIXPublicKey(r.key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", keys.ErrNotKey, err)
	}
	return keys.Parameters{keys.ParamPKCS11Public: {data}}, nil
}

// TokenRecipient is the holder of a key that is named by a key file. The token is asked for its public half when that
// is needed, once.
type TokenRecipient struct{ token *token }

// Wrap implements [keys.Recipient].
func (r *TokenRecipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	own, err := r.token.recipient(ctx)
	if err != nil {
		return layer.Packet{}, fmt.Errorf("%s: %w", r.token.label, err)
	}
	return own.Wrap(ctx, secret)
}

// Owns implements [keys.Owner]. It may have to ask the token; if that cannot be asked, it owns nothing, and
// Wrap will say why.
func (r *TokenRecipient) Owns(p layer.Packet) bool {
	ids := slices.DeleteFunc(keyIDs(p), func(id string) bool { return id == "" })
	if p.Scheme != Name || len(ids) == 0 {
		return false
	}
	key := r.token.publicKeyOnce()
	return key != nil && slices.Contains(ids, keyID(key))
}

// Parameters implements [keys.Portable]: the key file, and the configuration of modules if there is one.
func (r *TokenRecipient) Parameters() (keys.Parameters, error) { return r.token.parameters() }
