package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
)

// KeyProvider is a key provider as its author sees it: something that can hide a secret
// so that only itself can find it again.
//
// Parameters are what users wrote after the provider's name, one for each time that they
// named it: in "provider:kms:tenant=7" it is "tenant=7", and "Enabled" where nothing was
// written. A provider decides what they mean. Unwrap has none if the user of the image named
// no provider, and the packet alone told whom to ask.
//
// An error is shown to the user; it should say what the matter is and hold no secret. One
// that wraps [keys.ErrUnreachable] says that the provider could not do its work, as the
// keys are out of reach; any other says that it will not.
//
// Methods may be called at the same time.
type KeyProvider interface {
	// Wrap returns a packet with secret in it, which becomes part of a public image.
	// It must not be empty.
	Wrap(ctx context.Context, params [][]byte, secret []byte) (packet []byte, err error)
	// Unwrap returns the secret in a packet. Anyone may have made the packet, so it
	// must be authenticated by something that only the provider knows.
	Unwrap(ctx context.Context, params [][]byte, packet []byte) (secret []byte, err error)
}

// Server answers the requests of clients by a KeyProvider.
type Server struct {
	// Provider does the work.
	Provider KeyProvider
	// Name is what clients call the provider. It selects its parameters: ocicrypt,
	// other than this package, sends those of all providers, and everybody's keys.
	// Empty means that the parameters are those that are not of ocicrypt's own
	// kinds, if they are of one name; if they are of several, requests fail.
	Name string
	// ErrorLog is told by Serve of connections that fail and of panics of the
	// Provider; nil means that nobody is.
	ErrorLog *log.Logger
}

// maxRequest bounds a request, in bytes. ocicrypt sends all keys and recipients along.
const maxRequest = 16 << 20

// Command answers the one request on stdin with the one answer on stdout, as a command
// does that a client has started. A command that gets an error from it has to print it to
// standard error and to exit with a status that is not zero:
//
//	func main() {
//		s := provider.Server{Provider: myProvider{}}
//		if err := s.Command(context.Background(), os.Stdin, os.Stdout); err != nil {
//			fmt.Fprintln(os.Stderr, err)
//			os.Exit(1)
//		}
//	}
func (s Server) Command(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	data, err := io.ReadAll(io.LimitReader(stdin, maxRequest+1))
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	out, err := s.answer(ctx, "", data)
	if err != nil {
		return err
	}
	if _, err = stdout.Write(out); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// errRequest means that a request is not one of the protocol.
var errRequest = errors.New("not a request of the key-provider protocol")

// answer answers a request; op is the operation that it has to be for, if not empty.
func (s Server) answer(ctx context.Context, op string, data []byte) ([]byte, error) {
	if len(data) > maxRequest {
		return nil, fmt.Errorf("%w: over %d bytes", errRequest, maxRequest)
	}
	var r request
	if json.Unmarshal(data, &r) != nil {
		return nil, fmt.Errorf("%w: malformed", errRequest)
	}
	if op != "" && r.Op != op {
		return nil, fmt.Errorf("%w: op %.20q where %s was called", errRequest, r.Op, op)
	}
	var a answer
	var err error
	switch r.Op {
	case opWrap:
		var all map[string][][]byte
		if r.Wrap.Config != nil {
			all = r.Wrap.Config.Parameters
		}
		a.Wrap.Packet, err = s.do(ctx, all, r.Wrap.Secret, s.Provider.Wrap)
	case opUnwrap:
		var all map[string][][]byte
		if r.Unwrap.Config != nil {
			all = r.Unwrap.Config.Parameters
		}
		a.Unwrap.Secret, err = s.do(ctx, all, r.Unwrap.Packet, s.Provider.Unwrap)
	default:
		err = fmt.Errorf("%w: op %.20q", errRequest, r.Op)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

func (s Server) do(ctx context.Context, all map[string][][]byte, data []byte,
	method func(context.Context, [][]byte, []byte) ([]byte, error)) ([]byte, error) {
	params, err := s.params(all)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: nothing to work on", errRequest)
	}
	out, err := method(ctx, params, data)
	if err == nil && len(out) == 0 {
		err = errors.New("the key provider returned nothing")
	}
	return out, err
}

// params selects the provider's own parameters.
func (s Server) params(all map[string][][]byte) ([][]byte, error) {
	if s.Name != "" {
		return all[s.Name], nil
	}
	var own string
	for name := range all {
		if reserved(name) {
			continue
		}
		if own != "" {
			return nil, errors.New("the request has parameters of several key providers, and this one does not know its name")
		}
		own = name
	}
	return all[own], nil
}
