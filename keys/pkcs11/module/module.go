//go:build cgo

package module

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"imgcrypt/internal/tokenproto"
)

// Do does what req asks for. Whatever fails is in the answer. finish lets go of the library; it belongs after the answer
// was sent, because there are libraries that do not survive it. At most one operation can go on in a process.
//
// req.Env is the caller's to set, before.
func Do(req tokenproto.Request) (answer tokenproto.Answer, finish func()) {
	answer.Version = tokenproto.Version
	finish = func() {}
	err := req.Check()
	if err != nil {
		err = fail(tokenproto.BadRequest, "%w", err)
	} else {
		finish, err = do(req, &answer)
	}
	var failed *failure
	switch {
	case errors.As(err, &failed):
		answer.Reason, answer.Detail = failed.reason, failed.detail
	case err != nil:
		answer.Reason, answer.Detail = tokenproto.TokenFailed, err.Error()
	}
	return answer, finish
}

// failure is an error with a reason that the other side knows.
type failure struct {
	reason tokenproto.Reason
	detail string
}

func (f *failure) Error() string { return f.detail }

func fail(reason tokenproto.Reason, format string, args ...any) error {
	return &failure{reason: reason, detail: fmt.Errorf(format, args...).Error()}
}

// code returns the return value of the library's function that err is about.
func code(err error) uint {
	var e pkcs11.Error
	if errors.As(err, &e) {
		return uint(e)
	}
	return pkcs11.CKR_OK
}

func do(req tokenproto.Request, answer *tokenproto.Answer) (finish func(), err error) {
	ctx := pkcs11.New(req.Module)
	if ctx == nil {
		return func() {}, fail(tokenproto.ModuleFailed, "it is no PKCS #11 library that can be loaded here")
	}
	// Unloading is left to the end of the process: threads of the library may still run.
	err = ctx.Initialize()
	if code(err) == pkcs11.CKR_CANT_LOCK {
		// It cannot be used by several threads, and is not.
		err = ctx.Initialize(pkcs11.InitializeWithFlags(0))
	}
	if err != nil && code(err) != pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
		return func() {}, fail(tokenproto.ModuleFailed, "C_Initialize: %w", err)
	}
	finish = func() { _ = ctx.Finalize() }

	s, err := open(ctx, req)
	if err != nil {
		return finish, err
	}
	defer s.close()
	if req.Operation == tokenproto.PublicKey {
		return finish, s.publicKey(req, answer)
	}
	return finish, s.unwrap(req, answer)
}
