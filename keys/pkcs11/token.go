package pkcs11

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"sync"
	"time"

	"imgcrypt/internal/oneline"
	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
)

// defaultTimeout bounds one operation where nothing else was asked for. Smart cards take a second for one.
const defaultTimeout = 30 * time.Second

// token is a key on a token, as a key file names it. It is safe for concurrent use: operations wait for each
// other, so that a PIN that the first one finds to be wrong is tried by no other.
type token struct {
	label   string
	file    *keyFile
	pin     func() ([]byte, error) // nil without an error if there is none
	modules func() (*modules, error)
	helper  helper
	hash    string

	// turn holds one value while an operation is going on. It guards what follows, and file.uri.
	turn    chan struct{}
	public  *rsa.PublicKey
	wrapper *Recipient
	// refused is what became of the PIN; nothing is tried after that.
	refused *TokenError
	// asked means that publicKeyOnce has.
	asked bool
}

func newToken(c Config, k keys.Key, file *keyFile, modules func() (*modules, error)) *token {
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	return &token{
		label: k.Label, file: file, modules: modules, hash: c.OAEPHash,
		helper: helper{path: c.Helper, timeout: min(timeout, tokenproto.MaxTimeout)},
		// A pipe can be read once.
		pin:  sync.OnceValues(func() ([]byte, error) { return findPIN(k.Password, file) }),
		turn: make(chan struct{}, 1),
	}
}

// lock waits for its turn.
func (t *token) lock(ctx context.Context) error {
	// Where both are ready, select would take either.
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *token) unlock() { <-t.turn }

// findPIN returns the PIN: the one that was given with the file, else the file's own, else nil.
func findPIN(given []byte, file *keyFile) ([]byte, error) {
	if len(given) > 0 {
		return given, nil
	}
	pin, err := file.pin()
	if errors.Is(err, errNoPIN) {
		return nil, nil
	}
	return pin, err
}

// ask has the helper do one operation. Without an error the answer's reason is empty, or [tokenproto.NoMatch], or
// [tokenproto.Damaged].
func (t *token) ask(ctx context.Context, operation tokenproto.Operation, blobs []tokenproto.Blob) (*tokenproto.Answer, error) {
	if err := t.lock(ctx); err != nil {
		return nil, err
	}
	defer t.unlock()
	return t.askLocked(ctx, operation, blobs)
}

func (t *token) askLocked(ctx context.Context, operation tokenproto.Operation, blobs []tokenproto.Blob) (*tokenproto.Answer, error) {
	if t.refused != nil {
		return nil, t.refused
	}
	m, err := t.modules()
	if err != nil {
		return nil, err
	}
	module, err := m.find(t.file.uri)
	if err != nil {
		return nil, err
	}
	pin, err := t.pin()
	if err != nil {
		return nil, err
	}
	answer, err := t.helper.ask(ctx, tokenproto.Request{
		Operation: operation, Module: module, Env: t.file.env,
		Token: t.file.token, Key: t.file.key, PIN: pin, Blobs: blobs,
	})
	if err != nil {
		return nil, err
	}
	if key := answer.Key(); key != nil {
		t.public = key
	}
	switch answer.Reason {
	case "", tokenproto.NoMatch, tokenproto.Damaged:
		return answer, nil
	}
	return nil, t.failure(answer, module, pin)
}

// failure makes an error of an answer.
func (t *token) failure(answer *tokenproto.Answer, module string, pin []byte) error {
	reason, hint := reasonOf(answer.Reason)
	detail := quiet(answer.Detail, pin)
	switch reason {
	case ModuleFailed:
		detail = join(module, detail)
	case NoToken, SeveralTokens:
		detail = join(t.file.describeToken(), detail)
	case NoKey, SeveralKeys, UnfitKey:
		detail = join(t.file.describeKey(), detail)
	}
	if hint != "" {
		detail = join(detail, hint)
	}
	err := &TokenError{Reason: reason, Detail: detail}
	switch reason {
	case PINWrong, PINLocked, PINLastTry:
		t.refused = err
	}
	return err
}

// join joins two texts of which either may be empty.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// describeToken and describeKey repeat what of the URI is no secret.
func (f *keyFile) describeToken() string {
	return describe(pair{"token", f.token.Label}, pair{"serial", f.token.Serial}, pair{"model", f.token.Model},
		pair{"manufacturer", f.token.Manufacturer}, pair{"slot-id", slotText(f.token.Slot)})
}

func (f *keyFile) describeKey() string {
	return describe(pair{"object", f.key.Label}, pair{"id", f.key.ID})
}

type pair struct {
	name  string
	value []byte
}

func describe(pairs ...pair) string {
	text := ""
	for _, p := range pairs {
		if len(p.value) > 0 {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%s %.60q", p.name, p.value)
		}
	}
	return text
}

func slotText(slot *uint) []byte {
	if slot == nil {
		return nil
	}
	return fmt.Append(nil, *slot)
}

// quiet makes a text of others fit for an error.
func quiet(text string, pin []byte) string {
	return fmt.Sprintf("%.300s", oneline.Of(redact(text, pin)))
}

// recipient returns the key's recipient.
func (t *token) recipient(ctx context.Context) (*Recipient, error) {
	if err := t.lock(ctx); err != nil {
		return nil, err
	}
	defer t.unlock()
	if t.wrapper != nil {
		return t.wrapper, nil
	}
	if t.public == nil {
		if _, err := t.askLocked(ctx, tokenproto.PublicKey, nil); err != nil {
			return nil, err
		}
	}
	if t.public == nil {
		return nil, &TokenError{Reason: UnfitKey, Detail: "its public half cannot be used"}
	}
	var err error
	t.wrapper, err = newRecipient(t.public, t.hash)
	return t.wrapper, err
}

// publicKeyOnce returns the public key, or nil if the token cannot be asked for it. It asks once only.
func (t *token) publicKeyOnce() *rsa.PublicKey {
	// The helper has a time limit of its own.
	ctx := context.Background()
	if err := t.lock(ctx); err != nil {
		return nil
	}
	defer t.unlock()
	if t.public == nil && !t.asked {
		t.asked = true
		// Whoever needs more than the key will meet the error again.
		_, _ = t.askLocked(ctx, tokenproto.PublicKey, nil)
	}
	return t.public
}

// parameters returns the key file, with the PIN in it if one is known, and the configuration of modules. Where there is
// none, whoever gets this uses his own.
func (t *token) parameters() (keys.Parameters, error) {
	data := t.file.data
	// A file that cannot be read here may be readable there.
	pin, err := t.pin()
	own, inside := t.file.uri.GetQueryAttribute("pin-value", false)
	if err == nil && len(pin) > 0 && !(inside && own == string(pin)) {
		if data, err = t.file.withPIN(pin); err != nil {
			return nil, fmt.Errorf("%s: %w", t.label, err)
		}
	}
	params := keys.Parameters{keys.ParamPKCS11Keys: {data}}
	m, err := t.modules()
	var failed *TokenError
	if errors.As(err, &failed) && failed.Reason == NoModuleConfig && failed.err == nil {
		return params, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.label, err)
	}
	config, err := m.yaml()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.label, err)
	}
	params[keys.ParamPKCS11Config] = [][]byte{config}
	return params, nil
}
