package testprovider

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"slices"
)

// Vault hides secrets by AES-GCM with a key that comes of a seed.
type Vault struct{ Seed string }

var (
	errDenied  = errors.New("access denied")
	errForeign = errors.New("this packet is not of this vault")
)

func (v Vault) aead() (cipher.AEAD, error) {
	key := sha256.Sum256([]byte("test vault " + v.Seed))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Wrap returns a packet that only a vault of the same seed opens.
func (v Vault) Wrap(_ context.Context, params [][]byte, secret []byte) ([]byte, error) {
	if denied(params) {
		return nil, errDenied
	}
	aead, err := v.aead()
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, secret, []byte("vault")), nil
}

// Unwrap opens it.
func (v Vault) Unwrap(_ context.Context, params [][]byte, packet []byte) ([]byte, error) {
	if denied(params) {
		return nil, errDenied
	}
	aead, err := v.aead()
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, packet, []byte("vault"))
	if err != nil {
		return nil, errForeign
	}
	return secret, nil
}

func denied(params [][]byte) bool {
	return slices.ContainsFunc(params, func(p []byte) bool { return string(p) == Denied })
}
