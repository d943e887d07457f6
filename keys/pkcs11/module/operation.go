//go:build cgo

package module

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"imgcrypt/internal/tokenproto"
)

// publicKey finds the public half of the key. Some tokens show it to everybody, some to who has logged in, and some have
// it in the private key only.
func (s *session) publicKey(req tokenproto.Request, answer *tokenproto.Answer) error {
	for _, login := range []bool{false, true} {
		if login {
			if len(s.pin) == 0 {
				break
			}
			if err := s.logIn(); err != nil {
				return err
			}
		}
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
			key, ok, err := s.object(class, req.Key)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if n, e, ok := s.numbers(key); ok {
				answer.SetKey(n, e)
				return nil
			}
		}
	}
	if len(s.pin) == 0 {
		return fail(tokenproto.NoKey, "no PIN was given, without which the token may hide it")
	}
	return fail(tokenproto.NoKey, "")
}

// unwrap opens the first blob that it can, those first that name the key, those last that name another one.
func (s *session) unwrap(req tokenproto.Request, answer *tokenproto.Answer) error {
	if err := s.logIn(); err != nil {
		return err
	}
	key, ok, err := s.object(pkcs11.CKO_PRIVATE_KEY, req.Key)
	if err != nil {
		return err
	}
	if !ok {
		return fail(tokenproto.NoKey, "")
	}
	s.learn(key, req.Key, answer)
	id := tokenproto.KeyID(answer.Modulus, answer.Exponent)

	rank := func(b tokenproto.Blob) int {
		switch b.KeyID {
		case id:
			return 0
		case "":
			return 1
		}
		return 2
	}
	slices.SortStableFunc(req.Blobs, func(a, b tokenproto.Blob) int { return cmp.Compare(rank(a), rank(b)) })
	d := &decrypter{session: s, key: key, modulus: answer.Modulus, refused: make(map[string]error)}
	if always := s.attribute(key, pkcs11.CKA_ALWAYS_AUTHENTICATE); len(always) == 1 && always[0] != 0 {
		if len(s.pin) == 0 {
			return fail(tokenproto.PINMissing, "the key asks for it")
		}
		d.again = true
	}
	damaged := false
	for _, blob := range req.Blobs {
		secret, err := d.decrypt(blob)
		switch {
		case err != nil:
			return err
		case secret != nil:
			answer.Secret = secret
			return nil
		}
		damaged = damaged || blob.KeyID == id
	}
	switch {
	case d.missing != nil:
		return fail(tokenproto.NoMechanism, "%w", d.missing)
	case damaged:
		return fail(tokenproto.Damaged, "")
	}
	return fail(tokenproto.NoMatch, "")
}

// learn finds out the public half, if it can: from the private key, or else from the public one.
func (s *session) learn(private pkcs11.ObjectHandle, want tokenproto.Key, answer *tokenproto.Answer) {
	n, e, ok := s.numbers(private)
	if !ok {
		if public, found, err := s.object(pkcs11.CKO_PUBLIC_KEY, want); found && err == nil {
			n, e, ok = s.numbers(public)
		}
	}
	if ok {
		answer.SetKey(n, e)
	}
}

// decrypter opens blobs with one key.
type decrypter struct {
	*session
	key pkcs11.ObjectHandle
	// modulus is nil if it is not known.
	modulus []byte
	// again means that the key asks for the PIN for each operation.
	again bool
	// refused are the ways that the token has not, by hash, and "" for bare RSA.
	refused map[string]error
	// missing is set when a blob was not tried because there was no way.
	missing error
}

// decrypt returns nil without an error if the blob does not open.
func (d *decrypter) decrypt(blob tokenproto.Blob) ([]byte, error) {
	if d.modulus != nil && (len(blob.Data) != len(d.modulus) || bytes.Compare(blob.Data, d.modulus) >= 0) {
		return nil, nil
	}
	if d.refused[blob.Hash] == nil {
		secret, has, err := d.run(pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, parameters(blob.Hash)), blob.Data)
		switch {
		case err == nil:
			return opened(secret), nil
		case has:
			return nil, fatal(err)
		}
		d.refused[blob.Hash] = err
	}
	// There are tokens that know OAEP with SHA-1 only, SoftHSM 2.6 among them, but do the bare RSA operation.
	if d.refused[""] == nil {
		em, has, err := d.run(pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil), blob.Data)
		switch {
		case err == nil:
			secret, err := unpad(padLeft(em, len(blob.Data)), blob.Hash)
			if err != nil {
				return nil, nil
			}
			return opened(secret), nil
		case has:
			return nil, fatal(err)
		}
		d.refused[""] = err
	}
	d.missing = fmt.Errorf("RSA-OAEP with %s: %w", blob.Hash, d.refused[blob.Hash])
	return nil, nil
}

// opened makes sure that a secret is not nil, which means something else.
func opened(secret []byte) []byte { return append([]byte{}, secret...) }

func padLeft(em []byte, size int) []byte {
	if len(em) >= size {
		return em
	}
	return append(make([]byte, size-len(em)), em...)
}

func parameters(hash string) *pkcs11.OAEPParams {
	if hash == tokenproto.SHA1 {
		return pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil)
	}
	return pkcs11.NewOAEPParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, pkcs11.CKZ_DATA_SPECIFIED, nil)
}

// run does one operation with the key. has says whether the token has such an operation.
func (d *decrypter) run(mechanism *pkcs11.Mechanism, data []byte) (plain []byte, has bool, err error) {
	if err := d.ctx.DecryptInit(d.handle, []*pkcs11.Mechanism{mechanism}, d.key); err != nil {
		return nil, !refused(err) && code(err) != pkcs11.CKR_ARGUMENTS_BAD, fmt.Errorf("C_DecryptInit: %w", err)
	}
	if d.again {
		if err := d.ctx.Login(d.handle, pkcs11.CKU_CONTEXT_SPECIFIC, string(d.pin)); err != nil {
			return nil, true, fmt.Errorf("C_Login for the key: %w", err)
		}
	}
	plain, err = d.ctx.Decrypt(d.handle, data)
	if err != nil {
		return nil, !refused(err), fmt.Errorf("C_Decrypt: %w", err)
	}
	return plain, true, nil
}

func refused(err error) bool {
	switch code(err) {
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED:
		return true
	}
	return false
}

// fatal returns nil if err may mean that the blob is for another key. There is no agreement about how tokens
// say that, so it is everything that cannot mean anything else.
func fatal(err error) error {
	switch code(err) {
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT:
		return fail(tokenproto.UnfitKey, "it may not decrypt: %w", err)
	case pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_CANCEL:
		return err
	}
	if aboutPIN(err) {
		return pinError(err)
	}
	return nil
}
