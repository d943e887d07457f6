package pkcs11

import (
	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Reason is why a token did not do what it was asked for.
type Reason string

// The reasons. Those about the PIN make a [TokenError] wrap [keys.ErrPassword], all others [keys.ErrUnreachable].
const (
	// NoModuleConfig: there is no configuration that says which modules may be loaded, or the one that is named
	// cannot be read. BadModuleConfig: it is not what it should be.
	NoModuleConfig  Reason = "there is no configuration of PKCS #11 modules"
	BadModuleConfig Reason = "the configuration of PKCS #11 modules is malformed"
	// NoModule: there is no such library. ModuleForbidden: the configuration does not allow it. ModuleFailed: it cannot be loaded
	// or started.
	NoModule        Reason = "there is no such PKCS #11 module"
	ModuleForbidden Reason = "the PKCS #11 module is not allowed"
	ModuleFailed    Reason = "the PKCS #11 module cannot be used"
	// NoHelper: imgcrypt-pkcs11 is not installed. HelperFailed: it gave no proper answer. TimedOut: it gave none in time.
	NoHelper     Reason = "the program " + tokenproto.Program + ", which uses tokens, is missing"
	HelperFailed Reason = tokenproto.Program + " failed"
	TimedOut     Reason = tokenproto.Program + " did not answer in time"
	// NoToken, SeveralTokens, NoKey, SeveralKeys: the URI names nothing that is there, or too much. UnfitKey: what it
	// names cannot decrypt.
	NoToken       Reason = "there is no such token"
	SeveralTokens Reason = "there are several such tokens"
	NoKey         Reason = "there is no such key on the token"
	SeveralKeys   Reason = "there are several such keys on the token"
	UnfitKey      Reason = "the key on the token is unfit"
	// NoMechanism: the token cannot decrypt what was encrypted in this way.
	NoMechanism Reason = "the token cannot decrypt this"
	// TokenFailed is everything else.
	TokenFailed Reason = "the token failed"
	// PINMissing: none was given. PINWrong: the token refused it. PINLocked: it refuses every one. PINLastTry: a wrong one
	// would lock it, so none was tried.
	PINMissing Reason = "the token's PIN is missing"
	PINWrong   Reason = "the token refuses the PIN"
	PINLocked  Reason = "the token is locked, after too many wrong PINs"
	PINLastTry Reason = "the token allows one more try of its PIN, which is left to you"
)

// reasonOf translates what the helper said, and adds what to do about it.
func reasonOf(r tokenproto.Reason) (reason Reason, hint string) {
	switch r {
	case tokenproto.ModuleFailed:
		return ModuleFailed, ""
	case tokenproto.NoToken:
		return NoToken, ""
	case tokenproto.SeveralTokens:
		return SeveralTokens, "name it by serial= or slot-id="
	case tokenproto.NoKey:
		return NoKey, ""
	case tokenproto.SeveralKeys:
		return SeveralKeys, "name it by object= and id="
	case tokenproto.UnfitKey:
		return UnfitKey, ""
	case tokenproto.NoMechanism:
		return NoMechanism, "encrypt with OCICRYPT_OAEP_HASHALG=sha1 for this token"
	case tokenproto.TokenFailed:
		return TokenFailed, ""
	case tokenproto.PINMissing:
		return PINMissing, "give it as pin-value= or pin-source= in the URI, or as KEY.yaml:file=PATH"
	case tokenproto.PINWrong:
		return PINWrong, ""
	case tokenproto.PINLocked:
		return PINLocked, ""
	case tokenproto.PINLastTry:
		return PINLastTry, "log in with another program first"
	}
	return HelperFailed, ""
}

// TokenError says why a token could not be asked or did not do what it was asked for. It
// wraps [keys.ErrPassword] or [keys.ErrUnreachable], depending on Reason.
type TokenError struct {
	Reason Reason
	// Detail is what it is about, one line, perhaps empty. Never secret.
	Detail string
	// err is perhaps why.
	err error
}

func (e *TokenError) Error() string {
	text := string(e.Reason)
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	return text
}

// Unwrap returns the sentinel, and the cause if there is one.
func (e *TokenError) Unwrap() []error {
	sentinel := keys.ErrUnreachable
	switch e.Reason {
	case PINMissing, PINWrong, PINLocked, PINLastTry:
		sentinel = keys.ErrPassword
	}
	if e.err == nil {
		return []error{sentinel}
	}
	return []error{sentinel, e.err}
}

// DamagedError means that a packet names the token's key but does not open with it: the packet was damaged or
// forged. It wraps [layer.ErrMalformed].
type DamagedError struct {
	// KeyID is the key's id.
	KeyID string
}

func (e *DamagedError) Error() string {
	return "damaged pkcs11 packet: it names key " + e.KeyID + " but does not open with it"
}

// Unwrap returns [layer.ErrMalformed].
func (e *DamagedError) Unwrap() error { return layer.ErrMalformed }
