// Package testprovider is the tests' own key provider: a command, or a gRPC service with or without TLS, that keeps
// what it was asked, and can be made to fail in all the ways that providers do.
//
//	p := testprovider.New(t, testprovider.Options{Transport: testprovider.GRPC, TLS: true})
//	// OCICRYPT_KEYPROVIDER_CONFIG=p.File, recipient and key "provider:"+p.Name
//
// A service lives in the process of the test and ends with the test.
package testprovider

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imgcrypt/internal/testenv"
)

// Transport is how a provider is asked.
type Transport int

// The transports.
const (
	// Command is a program that is started for each request.
	Command Transport = iota
	// GRPC is a service on TCP, made by package provider.
	GRPC
	// GRPCUnix is the same on a unix socket.
	GRPCUnix
	// GRPCGo is a service on TCP, made by grpc-go and ocicrypt's generated code.
	GRPCGo
)

// Fault is a way of failing.
type Fault string

// The faults.
const (
	// None is a provider that works.
	None Fault = ""
	// Hang reads nothing and never answers.
	Hang Fault = "hang"
	// Flood writes a gigabyte; GRPCGo writes 8 MiB.
	Flood Fault = "flood"
	// Fail refuses with FailText: exit status 1 and standard error, or a gRPC status.
	Fail Fault = "fail"
	// NoJSON answers with NoJSONText instead of JSON.
	NoJSON Fault = "nojson"
	// NoTLS is a service that speaks plainly, where the configuration asks for TLS.
	NoTLS Fault = "notls"
	// Absent is a program that does not exist, a port on which nobody listens.
	Absent Fault = "absent"
	// Slow answers after half a second.
	Slow Fault = "slow"
	// Crash ends by a signal, or breaks the connection.
	Crash Fault = "crash"
)

// What a provider with a fault says.
const (
	FailText   = "the vault is sealed"
	NoJSONText = "Hello, I am no JSON."
)

// Denied is a parameter for which the provider refuses to work.
const Denied = "denied"

// Options say what the provider is like. The zero value is a command that works.
type Options struct {
	// Name is the provider's name; empty means "vault".
	Name      string
	Transport Transport
	// TLS makes a service use TLS, with a certificate for "provider.test" and an authority that the configuration names.
	TLS bool
	// ClientCert makes it ask for a client certificate, which the configuration has.
	ClientCert bool
	Fault      Fault
	// Seed tells vaults apart: what was wrapped with one seed opens with the same one only. It may be empty.
	Seed string
}

// Provider is a provider that is there until the test ends.
type Provider struct {
	// Name is its name.
	Name string
	// File is a configuration file that has it and nothing else.
	File string
	// Entry is what the file says about it.
	Entry Entry

	record string // the file that has the requests
	mu     *sync.Mutex
}

// Entry is a provider in a configuration file.
type Entry struct {
	Command *EntryCommand `json:"cmd,omitempty"`
	GRPC    string        `json:"grpc,omitempty"`
	TLS     *EntryTLS     `json:"grpc-tls,omitempty"`
}

// EntryCommand is a provider that is a command.
type EntryCommand struct {
	Path string   `json:"path"`
	Args []string `json:"args"`
}

// EntryTLS is how a service is called by TLS.
type EntryTLS struct {
	RootCAFile         string `json:"root-ca-file,omitempty"`
	CertFile           string `json:"cert-file,omitempty"`
	KeyFile            string `json:"key-file,omitempty"`
	ServerName         string `json:"server-name,omitempty"`
	InsecureSkipVerify bool   `json:"insecure-skip-verify,omitempty"`
}

// New starts a provider.
func New(t testing.TB, o Options) *Provider {
	t.Helper()
	if o.Name == "" {
		o.Name = "vault"
	}
	dir := t.TempDir()
	p := &Provider{Name: o.Name, record: filepath.Join(dir, "requests"), mu: new(sync.Mutex)}
	if o.Transport == Command {
		p.Entry.Command = &EntryCommand{
			Path: testenv.Build(t, "./internal/cmd/testprovider"),
			Args: []string{"-record", p.record, "-fault", string(o.Fault), "-seed", o.Seed, "-name", o.Name},
		}
		if o.Fault == Absent {
			p.Entry.Command.Path = filepath.Join(dir, "no-such-program")
		}
	} else {
		p.serve(t, dir, o)
	}
	p.File = WriteConfig(t, p)
	return p
}

// WriteConfig writes a configuration file that has several providers.
func WriteConfig(t testing.TB, providers ...*Provider) string {
	t.Helper()
	entries := make(map[string]Entry)
	for _, p := range providers {
		entries[p.Name] = p.Entry
	}
	data, err := json.MarshalIndent(map[string]any{"key-providers": entries}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ocicrypt.conf")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Requests returns what it was asked, each request as the JSON that arrived.
func (p *Provider) Requests(t testing.TB) []string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	data, err := os.ReadFile(p.record)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// Record appends a request to a file, as one line. Several processes may do so at the same time.
func Record(path string, request []byte) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append([]byte(strings.ReplaceAll(string(request), "\n", " ")), '\n')); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
