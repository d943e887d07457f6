package pgp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// maxRuns bounds how often gpg decrypts for one layer: each time the user may be asked for
// a passphrase, and whoever knows his key can write any number of packets that name it.
const maxRuns = 4

// Unwrap implements [keys.Identity]. gpg is given messages for one key, which the keyring
// holds, since it asks for the passphrases of all keys if a message may be for somebody
// who is not named, and for another one if it may be opened by a passphrase.
func (k *userKeyring) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	all, damage := messages(packets)
	var ids []uint64
	for _, m := range all {
		for _, r := range m.recipients {
			if r.KeyId != 0 {
				ids = append(ids, r.KeyId)
			}
		}
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
	secret, err := k.open(ctx, all, held)
	if secret == nil && err == nil {
		err = summary(damage)
	}
	return secret, err
}

// open has gpg open the messages for keys that are held. It returns neither a secret nor
// an error if there is none.
func (k *userKeyring) open(ctx context.Context, all []*message, held map[uint64]string) ([]byte, error) {
	var failed error
	runs, refused := 0, make(map[uint64]bool)
	for _, m := range all {
		for i, r := range m.recipients {
			if _, ok := held[r.KeyId]; !ok || refused[r.KeyId] {
				continue
			}
			if runs++; runs > maxRuns {
				return nil, failed
			}
			data, err := m.only(i)
			if err != nil {
				return nil, err
			}
			secret, err := k.gpg.decrypt(ctx, data, r.KeyId)
			if err == nil {
				return secret, nil
			}
			// What can be helped by a passphrase is the better reason.
			if !errors.Is(failed, keys.ErrPassword) {
				failed = err
			}
			switch {
			case errors.Is(err, keys.ErrPassword):
				refused[r.KeyId] = true // an answer that was not given is not asked for again
			case !errors.Is(err, layer.ErrMalformed):
				return nil, failed
			}
		}
	}
	return nil, failed
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
			if part.secret && slices.Contains(ids, part.id) {
				held[part.id] = listed[i].fingerprint()
			}
		}
	}
	return held, nil
}

// decrypt has gpg open a message that names key id.
func (g *gpg) decrypt(ctx context.Context, data []byte, id uint64) ([]byte, error) {
	// Neither --batch nor --no-tty, as the user may have to be asked, nor --quiet, which
	// keeps the reasons back.
	res, err := g.run(ctx, call{
		args:  []string{"--yes", "--no-auto-check-trustdb", "--skip-verify", "--status-fd", "2", "--decrypt"},
		stdin: data, limit: layer.MaxSecretSize, asks: true,
	})
	switch {
	case errors.Is(err, errFlooded):
		return nil, malformed("over %d bytes", layer.MaxSecretSize)
	case err != nil:
		return nil, err
	case res.code == 0 && res.has("DECRYPTION_OKAY"):
		return res.stdout, nil
	}
	switch why := res.failure(); {
	case why == damaged:
		return nil, &DamagedError{KeyID: id}
	case why == notTold || res.has("MISSING_PASSPHRASE") || res.has("NEED_PASSPHRASE") && !res.has("BEGIN_DECRYPTION"):
		return nil, fmt.Errorf("no %w for key %s: gpg could not ask for it, or was not told (%s); where nobody can be asked, "+
			"gpg --export-secret-keys writes a file that can be given as a key with a password: FILE:file=PATH",
			keys.ErrPassword, hexID(id), res.gist())
	}
	return nil, unreachable(fmt.Errorf("it does not decrypt for key %s: %s", hexID(id), res.gist()))
}

// failure says why gpg did not decrypt.
type failure int

const (
	otherwise failure = iota // gpg itself failed
	damaged                  // the message is not what it should be
	notTold                  // the passphrase is missing or wrong
)

// failure tells by the code that gpg gives for its failure to decrypt the session key. Such
// a code has the component that failed in its upper byte. Source: libgpg-error, and for
// gpg 1, whose codes name no component, its own list.
func (r result) failure() failure {
	const (
		unknown, gcrypt, gpg, pinentry = 0, 1, 2, 5

		badPassphrase, timeout, noAgent, noPinentry = 11, 62, 77, 85
		canceled, noPassphrase, fullyCanceled       = 99, 177, 198
		system                                      = 1 << 15 // an error of the operating system
	)
	for _, line := range r.status {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "ERROR" || words[1] != "pkdecrypt_failed" {
			continue
		}
		value, err := strconv.ParseUint(words[2], 10, 32)
		if err != nil {
			return otherwise
		}
		source, code := value>>24&0x7f, value&0xffff
		switch code {
		case badPassphrase, timeout, noPinentry, canceled, noPassphrase, fullyCanceled:
			return notTold
		}
		switch {
		case source == pinentry:
			return notTold
		case code == noAgent || code&system != 0:
			return otherwise
		case source == gcrypt || source == gpg || source == unknown:
			return damaged
		}
		return otherwise
	}
	if r.has("DECRYPTION_FAILED") && !r.has("NO_SECKEY") || r.has("NODATA") {
		return damaged
	}
	return otherwise
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
	args := []string{"--yes", "--no-armor", "--export-secret-keys", "--"}
	res, err := g.run(ctx, call{args: append(args, slices.Compact(fingerprints)...), limit: maxExport, asks: true})
	if err != nil {
		return nil, err
	}
	if res.code != 0 || len(res.stdout) == 0 {
		return nil, unreachable(fmt.Errorf("it does not export the secret keys: %s", res.gist()))
	}
	return res.stdout, nil
}
