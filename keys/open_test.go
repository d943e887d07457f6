package keys_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

const jweAnnotation = layer.KeysAnnotationPrefix + "jwe"

func TestOpenTriesAll(t *testing.T) {
	t.Parallel()
	ec, rsaKey, stranger := newEC(t, "P-256"), newRSA(t), newEC(t, "P-521")
	annotations := wrapped(t, testSecret(), recipientFor(t, ec), recipientFor(t, rsaKey))
	for name, ids := range map[string][]keys.Identity{
		"first":              {identityOf(t, "ec", ec)},
		"second":             {identityOf(t, "rsa", rsaKey)},
		"after a stranger":   {identityOf(t, "s", stranger), identityOf(t, "rsa", rsaKey)},
		"after a failed one": {fakeIdentity{err: errors.New("broken")}, identityOf(t, "ec", ec)},
		"after a bad secret": {fakeIdentity{scheme: "jwe"}, identityOf(t, "ec", ec)},
		"one file, two keys": {identityOf(t, "both", concat(stranger, ec))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := keys.Open(t.Context(), ids, annotations)
			if err != nil || got != testSecret() {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestOpenBesideDamage(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	annotations := wrapped(t, testSecret(), recipientFor(t, ec))
	annotations[jweAnnotation] = "!!!," + base64.StdEncoding.EncodeToString([]byte("no JWE")) + "," + annotations[jweAnnotation]
	got, err := keys.Open(t.Context(), []keys.Identity{identityOf(t, "ec", ec)}, annotations)
	if err != nil || got != testSecret() {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestNoKeyError(t *testing.T) {
	t.Parallel()
	ec, stranger := newEC(t, "P-256"), newEC(t, "P-256")
	annotations := wrapped(t, testSecret(), recipientFor(t, ec))
	annotations[layer.KeysAnnotationPrefix+"pgp"] = "AAAA"
	no := func(name string) keys.Identity { return identityOf(t, name, stranger) }
	locked := func(name string) keys.Identity {
		return named{name, fakeIdentity{err: fmt.Errorf("%s: wrong %w", name, keys.ErrPassword)}}
	}
	for _, tt := range []struct {
		name string
		ids  []keys.Identity
		want string
		is   error
	}{
		{"none", nil, "no key was given to open it (encrypted for jwe, pgp)", nil},
		{"one", []keys.Identity{no("a.pem")}, "a.pem does not open it (encrypted for jwe, pgp)", nil},
		{"two", []keys.Identity{no("a.pem"), no("b.pem")}, "none of the 2 keys opens it (encrypted for jwe, pgp)\n  a.pem: not for this key\n  b.pem: not for this key", nil},
		{"reasons", []keys.Identity{no("a.pem"), locked("b.pem"), fakeIdentity{err: errors.New("two\nlines")}},
			"none of the 3 keys opens it (encrypted for jwe, pgp)\n  a.pem: not for this key\n  b.pem: wrong password\n  key 3: two; lines", keys.ErrPassword},
		{"one reason", []keys.Identity{locked("b.pem")}, "b.pem does not open it (encrypted for jwe, pgp): wrong password", keys.ErrPassword},
		{"joined reasons", []keys.Identity{no("a.pem"), named{"providers", fakeIdentity{err: errors.Join(errors.New("one: gone"), errors.New("two: mad"))}}},
			"none of the 2 keys opens it (encrypted for jwe, pgp)\n  a.pem: not for this key\n  providers: one: gone\n  providers: two: mad", nil},
		{"many", append(slices.Repeat([]keys.Identity{no("a.pem")}, 20), locked("b.pem")),
			"none of the 21 keys opens it (encrypted for jwe, pgp)\n  b.pem: wrong password" + strings.Repeat("\n  a.pem: not for this key", 19) + "\n  and 1 more", keys.ErrPassword},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.Open(t.Context(), tt.ids, annotations)
			var no *keys.NoKeyError
			if !errors.As(err, &no) || !errors.Is(err, keys.ErrNoKey) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("got %v", err)
			}
			if errors.Is(err, keys.ErrNoMatch) {
				t.Error("it is an ErrNoMatch too")
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
			if len(no.Attempts) != len(tt.ids) {
				t.Errorf("%d attempts", len(no.Attempts))
			}
		})
	}
}

type named struct {
	name string
	keys.Identity
}

func (n named) Name() string { return n.name }

func TestOpenNothingReadable(t *testing.T) {
	t.Parallel()
	id := identityOf(t, "k", newEC(t, "P-256"))
	for name, tt := range map[string]struct {
		annotations map[string]string
		want        string
		noKey       bool
	}{
		"no annotations":   {nil, "no packet, so no key can open it", false},
		"empty annotation": {map[string]string{jweAnnotation: ""}, "no packet", false},
		"not base64":       {map[string]string{jweAnnotation: "{}"}, "annotation " + jweAnnotation + ": packet 0: malformed: not base64", false},
		"not a JWE":        {map[string]string{jweAnnotation: "AAAA"}, "jwe packet: malformed: no JWE", true},
		"much not base64":  {map[string]string{jweAnnotation: strings.Repeat("!,", 500)}, "packet 1: malformed", false},
		"much not a JWE":   {map[string]string{jweAnnotation: strings.Repeat("AAAA,", 500) + "AAAA"}, "no JWE (and 500 more such packets)", true},
		"half base64":      {map[string]string{jweAnnotation: "AAAA,?"}, "packet 1: malformed: not base64", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.Open(t.Context(), []keys.Identity{id}, tt.annotations)
			if !errors.Is(err, layer.ErrMalformed) || errors.Is(err, keys.ErrNoKey) != tt.noKey ||
				!strings.Contains(err.Error(), tt.want) || len(err.Error()) > 1000 {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Each key that was tried has its line, also where all have the same reason.
func TestMalformedPacket(t *testing.T) {
	t.Parallel()
	ids := []keys.Identity{identityOf(t, "a", newEC(t, "P-256")), identityOf(t, "b", newEC(t, "P-256"))}
	_, err := keys.Open(t.Context(), ids, map[string]string{jweAnnotation: "AAAA"})
	if want := "none of the 2 keys opens it (encrypted for jwe)\n  a: jwe packet: malformed: no JWE\n  b: jwe packet: malformed: no JWE"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestOpenDamagedPacket(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	r := recipientFor(t, ec)
	p, err := r.Wrap(t.Context(), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	p.Data = []byte(strings.Replace(string(p.Data), `"tag":"`, `"tag":"AAAA`, 1))
	_, err = keys.Open(t.Context(), []keys.Identity{identityOf(t, "k", ec)}, map[string]string{jweAnnotation: layer.AddPacket("", p)})
	var damaged *jwe.DamagedError
	if !errors.As(err, &damaged) || damaged.KeyID != r.(*jwe.Recipient).KeyID() || !errors.Is(err, keys.ErrNoKey) || !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

func TestOpenCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ec := newEC(t, "P-256")
	_, err := keys.Open(ctx, []keys.Identity{identityOf(t, "k", ec)}, wrapped(t, testSecret(), recipientFor(t, ec)))
	if !errors.Is(err, context.Canceled) || errors.Is(err, keys.ErrNoKey) {
		t.Errorf("got %v", err)
	}
}
