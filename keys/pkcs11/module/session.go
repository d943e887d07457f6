//go:build cgo

package module

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"imgcrypt/internal/tokenproto"
)

// session is an open session with one token.
type session struct {
	ctx    *pkcs11.Ctx
	handle pkcs11.SessionHandle
	slot   uint
	token  pkcs11.TokenInfo
	pin    []byte
	login  bool
}

// open finds the token and opens a session. It does not log in.
func open(ctx *pkcs11.Ctx, req tokenproto.Request) (*session, error) {
	slot, info, err := find(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	handle, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	return &session{ctx: ctx, handle: handle, slot: slot, token: info, pin: req.PIN}, nil
}

func (s *session) close() {
	if s.login {
		_ = s.ctx.Logout(s.handle)
	}
	_ = s.ctx.CloseSession(s.handle)
}

// find returns the one token that is meant.
func find(ctx *pkcs11.Ctx, want tokenproto.Token) (uint, pkcs11.TokenInfo, error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var found []uint
	var info pkcs11.TokenInfo
	var others []string
	for _, slot := range slots {
		// One that cannot be read may be any, but not one that can be used.
		token, err := ctx.GetTokenInfo(slot)
		if err != nil || token.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		if !is(want, slot, token) {
			others = append(others, fmt.Sprintf("%q", trim(token.Label)))
			continue
		}
		found, info = append(found, slot), token
	}
	switch len(found) {
	case 1:
		return found[0], info, nil
	case 0:
		return 0, info, fail(tokenproto.NoToken, "there are %s", list(others))
	}
	return 0, info, fail(tokenproto.SeveralTokens, "it is true of those in slots %v", found)
}

// list names a few tokens.
func list(labels []string) string {
	const few = 5
	slices.Sort(labels)
	switch n := len(labels); {
	case n == 0:
		return "no tokens at all"
	case n > few:
		return strings.Join(labels[:few], ", ") + fmt.Sprintf(" and %d more", n-few)
	}
	return strings.Join(labels, ", ")
}

func is(want tokenproto.Token, slot uint, token pkcs11.TokenInfo) bool {
	same := func(want []byte, got string) bool { return len(want) == 0 || string(want) == trim(got) }
	return (want.Slot == nil || *want.Slot == slot) && same(want.Label, token.Label) && same(want.Serial, token.SerialNumber) &&
		same(want.Model, token.Model) && same(want.Manufacturer, token.ManufacturerID)
}

// trim takes off what fills a text to its fixed length: spaces, and for some vendors zeros.
func trim(text string) string { return strings.TrimRight(text, " \x00") }

// logIn logs the user in, once. Each wrong PIN costs a try, and after some the token is locked for good, so nothing is
// tried that is known to fail, and the last try is nobody's but the user's.
func (s *session) logIn() error {
	if s.login {
		return nil
	}
	if len(s.pin) == 0 {
		if s.token.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
			return nil
		}
		return fail(tokenproto.PINMissing, "")
	}
	switch {
	case s.token.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fail(tokenproto.PINLocked, "")
	case s.token.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fail(tokenproto.PINLastTry, "")
	}
	err := s.ctx.Login(s.handle, pkcs11.CKU_USER, string(s.pin))
	switch {
	case err == nil || code(err) == pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		s.login = true
		return nil
	case aboutPIN(err):
		return pinError(err)
	}
	return fmt.Errorf("C_Login: %w", err)
}

func aboutPIN(err error) bool {
	switch code(err) {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
		return true
	}
	return false
}

func pinError(err error) error {
	if code(err) == pkcs11.CKR_PIN_LOCKED {
		return fail(tokenproto.PINLocked, "C_Login: %w", err)
	}
	return fail(tokenproto.PINWrong, "C_Login: %w", err)
}

// object returns the one RSA key of a class that is meant, or ok = false if there is none.
func (s *session) object(class uint, want tokenproto.Key) (key pkcs11.ObjectHandle, ok bool, err error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if len(want.Label) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, want.Label))
	}
	if len(want.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, want.ID))
	}
	if err := s.ctx.FindObjectsInit(s.handle, template); err != nil {
		return 0, false, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	const enough = 100
	found, _, err := s.ctx.FindObjects(s.handle, enough)
	if final := s.ctx.FindObjectsFinal(s.handle); err == nil {
		err = final
	}
	switch {
	case err != nil:
		return 0, false, fmt.Errorf("C_FindObjects: %w", err)
	case len(found) == 0:
		return 0, false, nil
	case len(found) > 1:
		return 0, false, fail(tokenproto.SeveralKeys, "there are %d %s with this name", len(found), className(class))
	}
	// Not every library answers this; what the key cannot do it will say.
	kind := s.attribute(found[0], pkcs11.CKA_KEY_TYPE)
	if kind != nil && !bytes.Equal(kind, pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA).Value) {
		return 0, false, fail(tokenproto.UnfitKey, "it is no RSA key")
	}
	return found[0], true, nil
}

func className(class uint) string {
	if class == pkcs11.CKO_PUBLIC_KEY {
		return "public keys"
	}
	return "private keys"
}

// attribute returns the value of an attribute, or nil if it cannot be read.
func (s *session) attribute(key pkcs11.ObjectHandle, kind uint) []byte {
	values, err := s.ctx.GetAttributeValue(s.handle, key, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil || len(values) != 1 {
		return nil
	}
	return values[0].Value
}

// numbers returns the public half of a key, public or private, and whether both numbers are known.
func (s *session) numbers(key pkcs11.ObjectHandle) (n, e []byte, ok bool) {
	n, e = s.attribute(key, pkcs11.CKA_MODULUS), s.attribute(key, pkcs11.CKA_PUBLIC_EXPONENT)
	return n, e, len(n) > 0 && len(e) > 0
}
