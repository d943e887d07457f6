package pgp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// userKeyring is the holder of the secret keys in the user's keyring, which never leave
// it: gpg decrypts.
type userKeyring struct {
	gpg *gpg
	// turn lets one gpg run at a time, so that the user is asked one thing at a time.
	turn chan struct{}
}

func newKeyring(g *gpg) *userKeyring { return &userKeyring{gpg: g, turn: make(chan struct{}, 1)} }

// Name implements [keys.Named].
func (*userKeyring) Name() string { return "gpg keyring" }

// Unwrap implements [keys.Identity]. Only packets that name a key whose secret part the
// keyring holds are given to gpg, since it asks for the passphrases of all keys if a
// packet names none.
func (k *userKeyring) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	var ids []uint64
	var damage []error
	for _, p := range packets {
		if p.Scheme != Name {
			continue
		}
		if _, err := parseMessage(p.Data); err != nil {
			damage = append(damage, err)
		}
		ids = append(ids, KeyIDs(p)...)
	}
	if len(ids) == 0 {
		return nil, summary(damage)
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	held, err := k.gpg.secretKeys(ctx, ids)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, p := range packets {
		i := slices.IndexFunc(KeyIDs(p), func(id uint64) bool { return held[id] != "" })
		if i < 0 {
			continue
		}
		secret, err := k.gpg.decrypt(ctx, p.Data, KeyIDs(p)[i])
		if err == nil {
			return secret, nil
		}
		// An answer that was not given is not asked for again.
		if failed = err; !errors.Is(err, layer.ErrMalformed) {
			break
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, summary(damage)
}

// secretKeys returns those of the keys whose secret part is in the keyring or on a smart
// card, with the fingerprints of their primary keys.
func (g *gpg) secretKeys(ctx context.Context, ids []uint64) (map[uint64]string, error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	if len(ids) > maxRecipients {
		return nil, malformed("more than %d recipients", maxRecipients)
	}
	queries := make([]string, len(ids))
	for i, id := range ids {
		queries[i] = hexID(id)
	}
	listed, _, err := g.list(ctx, "secret-keys", queries...)
	if err != nil {
		return nil, err
	}
	held := make(map[uint64]string)
	for i := range listed {
		for _, part := range listed[i].parts {
			if slices.Contains(ids, part.id) && !part.absent {
				held[part.id] = listed[i].fingerprint()
			}
		}
	}
	return held, nil
}

// decrypt has gpg open a message that names key id.
func (g *gpg) decrypt(ctx context.Context, data []byte, id uint64) ([]byte, error) {
	// Neither --batch nor --no-tty: the user may have to be asked.
	res, err := g.run(ctx, call{
		args:  []string{"--quiet", "--yes", "--skip-verify", "--status-fd", "2", "--decrypt"},
		stdin: data, limit: layer.MaxSecretSize, asks: true,
	})
	switch {
	case errors.Is(err, errFlooded):
		return nil, malformed("over %d bytes", layer.MaxSecretSize)
	case err != nil:
		return nil, err
	case res.code == 0 && res.has("DECRYPTION_OKAY"):
		return res.stdout, nil
	case res.has("DECRYPTION_FAILED") && !res.has("ERROR", "pkdecrypt_failed") && !res.has("MISSING_PASSPHRASE") &&
		!res.has("BAD_PASSPHRASE") && !res.has("NO_SECKEY"):
		return nil, &DamagedError{KeyID: id}
	case res.has("MISSING_PASSPHRASE") || res.has("BAD_PASSPHRASE") || res.has("ERROR", "pkdecrypt_failed"):
		return nil, fmt.Errorf("no %w for key %s: gpg could not ask for it, or was not told (%s); where nobody can be asked, "+
			"gpg --export-secret-keys writes a file that can be given as a key, with a password: FILE:file=PATH",
			keys.ErrPassword, hexID(id), res.gist())
	}
	return nil, unreachable(fmt.Errorf("it does not decrypt for key %s: %s", hexID(id), res.gist()))
}

// ExportSecretKeys returns those of the keys, named by the ids of their primary keys or
// subkeys, whose secret parts the user's keyring holds: a secret keyring, not armoured,
// protected by the same passphrases as the keyring. The user may be asked for them. If the
// keyring holds none, the error wraps [keys.ErrNoMatch]; if gpg cannot be run, does not
// end or exports nothing, it wraps [keys.ErrUnreachable].
func ExportSecretKeys(ctx context.Context, config Config, keyIDs []uint64) ([]byte, error) {
	if len(keyIDs) == 0 {
		return nil, fmt.Errorf("gpg keyring: %w", keys.ErrNoMatch)
	}
	g := &gpg{config: config}
	held, err := g.secretKeys(ctx, keyIDs)
	if err != nil {
		return nil, err
	}
	var fingerprints []string
	for _, fingerprint := range held {
		if !isHex(fingerprint) || fingerprint == "" {
			return nil, unreachable(errors.New("it lists a key without a fingerprint"))
		}
		fingerprints = append(fingerprints, "0x"+fingerprint)
	}
	if len(fingerprints) == 0 {
		return nil, fmt.Errorf("gpg keyring: %w", keys.ErrNoMatch)
	}
	slices.Sort(fingerprints)
	args := []string{"--quiet", "--yes", "--no-armor", "--export-secret-keys", "--"}
	res, err := g.run(ctx, call{args: append(args, slices.Compact(fingerprints)...), limit: maxExport, asks: true})
	if err != nil {
		return nil, err
	}
	if res.code != 0 || len(res.stdout) == 0 {
		return nil, unreachable(fmt.Errorf("it does not export the secret keys: %s", res.gist()))
	}
	return res.stdout, nil
}
