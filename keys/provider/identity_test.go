package provider_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// Until a provider is needed, nothing is read: whatever the file is, it disturbs nobody.
func TestNothingIsReadWithoutNeed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "broken.conf")
	write(t, file, "not JSON")
	for _, file := range []string{"", "/no/such/file", file} {
		s := scheme(file)
		ids := append(s.Identities(keys.Parameters{"vault": {[]byte("x")}}), s.Fallback(nil))
		for _, packets := range [][]layer.Packet{nil, {{Scheme: "jwe", Data: []byte("x")}}, {{Scheme: "provider"}, {Scheme: "providers.vault"}}} {
			for _, id := range ids {
				if _, err := id.Unwrap(t.Context(), packets); !errors.Is(err, keys.ErrNoMatch) {
					t.Errorf("%q: %v", file, err)
				}
			}
		}
	}
}

// One reading serves all that a scheme makes; one that fails is no reading.
func TestConfigurationIsReadOnce(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{})
	file := filepath.Join(t.TempDir(), "later.conf")
	s := scheme(file)
	if _, err := s.Named("vault"); !errors.Is(err, provider.ErrConfig) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before the file is there: %v", err)
	}
	data, err := os.ReadFile(p.File)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(data))
	packet := wrap(t, s, "vault", "secret")
	write(t, file, "not JSON any more")
	if got, err := unwrap(t, s, "vault", packet); err != nil || got != "secret" {
		t.Errorf("after the file was overwritten: %q, %v", got, err)
	}
}

func TestFallback(t *testing.T) {
	t.Parallel()
	a := testprovider.New(t, testprovider.Options{Name: "a", Seed: "a", Transport: testprovider.GRPC})
	b := testprovider.New(t, testprovider.Options{Name: "b", Seed: "b"})
	s := scheme(testprovider.WriteConfig(t, a, b))
	fromA, fromB := wrap(t, s, "a:x", "secret"), wrap(t, s, "b:y", "secret")
	bad := func(name string) layer.Packet { return layer.Packet{Scheme: "provider." + name, Data: []byte("bad")} }
	named, err := s.Named("a:z")
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name    string
		given   []keys.Identity
		packets []layer.Packet
		says    []string // of the error, one line each; none means that it opens
	}{
		{"alone", nil, []layer.Packet{fromB}, nil},
		{"the second packet", nil, []layer.Packet{bad("a"), fromA}, nil},
		{"the second provider", nil, []layer.Packet{bad("a"), {Scheme: "jwe"}, bad("nobody"), fromB, fromA}, nil},
		{"one that was named", []keys.Identity{named}, []layer.Packet{fromB, fromA}, nil},
		{"none", nil, []layer.Packet{bad("b"), bad("nobody"), bad("a"), bad("a")}, []string{
			"provider b: ", "provider nobody: cannot be asked: key-provider configuration ", "provider a: refused: this packet is not of this vault",
		}},
		{"none but the named one", []keys.Identity{named}, []layer.Packet{bad("a"), bad("b")}, []string{"provider b: "}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			secret, err := s.Fallback(c.given).Unwrap(t.Context(), c.packets)
			if c.says == nil {
				if err != nil || string(secret) != "secret" {
					t.Errorf("%q, %v", secret, err)
				}
				return
			}
			if err == nil {
				t.Fatal("it opens")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(c.says) {
				t.Fatalf("%v", err)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, c.says[i]) {
					t.Errorf("%s: want %s", line, c.says[i])
				}
			}
		})
	}
	if _, err := s.Fallback([]keys.Identity{named}).Unwrap(t.Context(), []layer.Packet{fromA}); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("the named one is asked again: %v", err)
	}
}

// Each provider gets its own parameters, and whoever was not named gets none.
func TestParametersOfOthersStayHere(t *testing.T) {
	t.Parallel()
	const canary = "canary-in-parameters"
	for _, transport := range []testprovider.Transport{testprovider.Command, testprovider.GRPC} {
		a := testprovider.New(t, testprovider.Options{Name: "a", Seed: "a", Transport: transport})
		b := testprovider.New(t, testprovider.Options{Name: "b", Seed: "b", Transport: transport})
		s := scheme(testprovider.WriteConfig(t, a, b))
		params := keys.Parameters{"a": {[]byte(canary + "-a1"), []byte(canary + "-a2")}, "b": {[]byte(canary + "-b")}}
		recipients, err := s.Recipients(t.Context(), params)
		if err != nil || len(recipients) != 2 {
			t.Fatalf("%d recipients, %v", len(recipients), err)
		}
		var packets []layer.Packet
		for _, r := range recipients {
			p, err := r.Wrap(t.Context(), []byte("secret"))
			if err != nil {
				t.Fatal(err)
			}
			packets = append(packets, p)
		}
		for _, id := range append(s.Identities(params), s.Fallback(nil)) {
			if secret, err := id.Unwrap(t.Context(), packets); err != nil || string(secret) != "secret" {
				t.Errorf("%q, %v", secret, err)
			}
		}
		// In base64, where the beginning of the parameters is the same.
		for p, want := range map[*testprovider.Provider][]int{a: {2, 2, 0}, b: {1, 1}} {
			got := p.Requests(t)
			if len(got) != len(want) {
				t.Fatalf("%s was asked %q", p.Name, got)
			}
			for i, request := range got {
				if n := strings.Count(request, "Y2FuYXJ5LWluLXBhcmFtZXRlcn"); n != want[i] {
					t.Errorf("%s: request %d has %d parameters: %s", p.Name, i, n, request)
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	s := scheme(testprovider.New(t, testprovider.Options{}).File)
	for arg, says := range map[string]string{
		"": "no key provider is named", ":x": "no key provider is named",
		"pubkeys:x": "cannot be called pubkeys", "privkeys": "cannot be called privkeys",
		"other": "it has no provider other (it has vault)", "o\x1b[2J:x": `it has no provider "o\x1b[2J"`,
	} {
		_, recipient := s.Recipient(t.Context(), arg, new(keys.Files))
		_, named := s.Named(arg)
		for _, err := range []error{recipient, named} {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%q: %v", arg, err)
			}
		}
	}
	id, err := s.Named("vault:canary")
	if err != nil || id.(keys.Named).Name() != "provider vault" {
		t.Errorf("%v, %v", id, err)
	}
	r, err := s.Recipient(t.Context(), "vault:canary", new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	if kind, text := r.(keys.Marked).Mark(); kind != "provider.vault" || text != "canary" {
		t.Errorf("marked %s, %s", kind, text)
	}
	if got := s.Describe(layer.Packet{Scheme: "provider.vault"}); len(got) != 1 || got[0] != "[provider.vault]" {
		t.Errorf("described as %q", got)
	}
}

// A provider that does not answer is not asked again at once: not about other packets, nor about other layers.
func TestSilenceCostsOneDeadline(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	for _, transport := range []testprovider.Transport{testprovider.Command, testprovider.GRPC} {
		p := testprovider.New(t, testprovider.Options{Transport: transport, Fault: testprovider.Hang})
		s := provider.Scheme(provider.Config{File: p.File, Timeout: timeout, IdleTimeout: time.Millisecond})
		packets := slices.Repeat([]layer.Packet{{Scheme: "provider.vault", Data: []byte("x")}}, 100)
		begin := time.Now()
		var first string
		for range 12 {
			_, err := unwrap(t, s, "vault", packets...)
			if !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), "no answer within 1s") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if first = cmp.Or(first, err.Error()); err.Error() != first {
				t.Errorf("%v, and before %s", err, first)
			}
		}
		if took := time.Since(begin); took > 5*timeout {
			t.Errorf("it took %v", took)
		}
		// It may have come back, so after a while it is asked.
		for asked := false; !asked; time.Sleep(10 * time.Millisecond) {
			begin = time.Now()
			if _, err := unwrap(t, s, "vault", packets[0]); err == nil {
				t.Fatal("it answers")
			}
			asked = time.Since(begin) > timeout/2
		}
	}
}

// Refusing many packets slowly takes no longer than two deadlines.
func TestSlowRefusals(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{Fault: testprovider.Slow})
	s := provider.Scheme(provider.Config{File: p.File, Timeout: 2 * time.Second})
	begin := time.Now()
	_, err := unwrap(t, s, "vault", slices.Repeat([]layer.Packet{{Scheme: "provider.vault", Data: []byte("x")}}, 100)...)
	if err == nil || !strings.Contains(err.Error(), "this packet is not of this vault\n") || !regexp.MustCompile("not asked about more than [1-9] packets$").MatchString(err.Error()) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// An image may have any number of packets; each costs a call.
func TestManyPackets(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{Transport: testprovider.GRPC})
	s := scheme(p.File)
	packets := make([]layer.Packet, layer.MaxPackets)
	for i := range packets {
		packets[i] = layer.Packet{Scheme: "provider.vault", Data: fmt.Appendf(nil, "bad %d", i)}
	}
	_, err := unwrap(t, s, "vault", packets...)
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), "not asked about more than 64 packets") {
		t.Errorf("%v", err)
	}
	if n := len(p.Requests(t)); n != 64 {
		t.Errorf("it was asked %d times", n)
	}
}

// A provider that is not there is asked once for a layer.
func TestAwayIsAskedOnce(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{Fault: testprovider.Hang})
	s := provider.Scheme(provider.Config{File: p.File, Timeout: 300 * time.Millisecond})
	begin := time.Now()
	_, err := unwrap(t, s, "vault", make([]layer.Packet, 1)...)
	if !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("%v", err)
	}
	bad := layer.Packet{Scheme: "provider.vault", Data: []byte("bad")}
	if _, err = unwrap(t, s, "vault", bad, bad, bad, bad, bad, bad, bad, bad, bad, bad); !errors.Is(err, keys.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Whoever waits for a provider can stop at any time.
func TestCancel(t *testing.T) {
	t.Parallel()
	for _, transport := range []testprovider.Transport{testprovider.Command, testprovider.GRPC, testprovider.GRPCGo} {
		p := testprovider.New(t, testprovider.Options{Transport: transport, Fault: testprovider.Hang})
		s := scheme(p.File)
		r, err := s.Recipient(t.Context(), "vault", new(keys.Files))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		begin := time.Now()
		var e *provider.Error
		if _, err := r.Wrap(ctx, []byte("secret")); !errors.Is(err, context.Canceled) || errors.Is(err, keys.ErrUnreachable) || !errors.As(err, &e) {
			t.Errorf("%d: %v", transport, err)
		}
		id := s.Fallback(nil)
		if _, err := id.Unwrap(ctx, []layer.Packet{{Scheme: "provider.vault", Data: []byte("x")}}); !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v", transport, err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%d: it took %v", transport, took)
		}
	}
}
