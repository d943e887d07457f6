package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testprovider"
)

// The providers of provider_faults_test.go: what can be wrong with a command, with a service and with their configuration.

// providerFaults are all of them.
func providerFaults() []providerFault {
	return slices.Concat(faultyConfigs(), faultyCommands(), faultyServices(), faultyTLS())
}

// common says whether a fault is one of those that are tried in every way that there is.
func (f providerFault) common() bool {
	return slices.Contains([]string{
		"no file", "malformed file", "other provider", "hangs", "leaves a process that holds its output", "floods stdout",
		"fails", "no JSON", "not there", "hanging service", "wrong authority", "nobody listens",
	}, f.name)
}

// config is a configuration of the provider "vault", which is this entry.
func config(entry string) func(*testing.T) []byte {
	return raw(`{"key-providers": {"vault": ` + entry + `}}`)
}

func raw(text string) func(*testing.T) []byte {
	return func(*testing.T) []byte { return []byte(text) }
}

// script is a provider that is a shell script.
func script(lines ...string) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		path := filepath.Join(t.TempDir(), "provider.sh")
		writeFile(t, path, []byte(strings.Join(lines, "\n")+"\n"))
		return config(fmt.Sprintf(`{"cmd": {"path": "/bin/sh", "args": [%q]}}`, path))(t)
	}
}

// faultyConfigs need no provider to fail.
func faultyConfigs() []providerFault {
	faults := []providerFault{
		{name: "no file", says: `providers\.conf: no such file or directory`},
		{name: "malformed file", config: raw("key-providers:\n  vault: {}\n"), says: `providers\.conf: it is malformed`},
		{name: "cut file", config: raw(`{"key-providers": {"vault": {"cmd": {"path":`), says: `providers\.conf: it is malformed`},
		{name: "other shape", config: raw(`{"key-providers": ["vault"]}`), says: `providers\.conf: it is malformed`},
		{name: "empty file", config: raw(""), says: `providers\.conf: it is malformed`},
		{name: "other provider", config: raw(`{"key-providers": {"kms": {"cmd": {"path": "/bin/true"}}}}`), says: `it has no provider vault \(it has kms\)`},
		{name: "no provider", config: raw(`{}`), says: `it has no provider vault \(it has none\)`},
		{name: "neither cmd nor grpc", config: config(`{"path": "/bin/true"}`), says: "vault: it has neither cmd nor grpc"},
		{name: "cmd without path", config: config(`{"cmd": {"args": ["x"]}}`), says: "vault: its cmd has no path"},
		{name: "grpc without port", config: config(`{"grpc": "localhost"}`), says: "it is no HOST:PORT"},
	}
	for i := range faults {
		faults[i].unconfigured = true
	}
	return faults
}

// gigabyte is as many zeros.
const gigabyte = "head -c 1073741824 /dev/zero"

func faultyCommands() []providerFault {
	return []providerFault{
		{name: "hangs", config: script("exec sleep 3600"), hangs: true, says: "no answer within [12]s"},
		{name: "reads and hangs", config: script("cat >/dev/null", "exec sleep 3600"), hangs: true, says: "no answer within [12]s"},
		{name: "hangs with words", config: script("echo the vault ponders >&2", "sleep 3600"), hangs: true, says: "no answer within [12]s: the vault ponders"},
		{name: "answers half and hangs", config: script(`printf '{"keywrapresults":{"annotation":"AA'`, "sleep 3600"), hangs: true, says: "no answer within [12]s"},
		{name: "does not mind signals", config: script("trap '' TERM INT HUP", "while :; do sleep 3600; done"), hangs: true, says: "no answer within [12]s"},
		{name: "leaves a process that holds its output", config: script("sleep 3600 &", "exit 0"), says: "not the JSON of the protocol"},
		{name: "fails and leaves a process", config: script("sleep 3600 &", "echo the vault is sealed >&2", "exit 1"), says: "exited with status 1: the vault is sealed"},
		{name: "is killed and leaves a process", config: script("sleep 3600 &", "kill -9 $$"), says: "signal: killed"},
		{name: "floods stdout", config: script("exec " + gigabyte), says: "its answer is over 1572864 bytes"},
		{name: "floods stdout and does not mind", config: script("trap '' PIPE", gigabyte, gigabyte), says: "its answer is over 1572864 bytes"},
		{name: "floods stderr", config: script("echo the vault talks >&2", gigabyte+" >&2", "echo the vault is sealed >&2", "exit 1"), large: true, says: "exited with status 1: the vault talks.* … .*the vault is sealed"},
		{name: "fails", config: script("echo the vault is sealed >&2", "exit 1"), says: "exited with status 1: the vault is sealed"},
		{name: "fails silently", config: script("exit 1"), says: `exited with status 1\b`},
		{name: "fails in lines and colours", config: script(`printf '\033[31mfatal\033[0m\n\nthe vault is sealed\r\n' >&2`, "exit 3"), says: `exited with status 3: .*fatal.*; the vault is sealed`},
		{name: "no JSON", config: script("echo Hello"), says: "not the JSON of the protocol"},
		{name: "no JSON, with words", config: script("echo Hello", "echo the vault is sealed >&2"), says: "not the JSON of the protocol: the vault is sealed"},
		{name: "nothing", config: script("exit 0"), says: "not the JSON of the protocol"},
		{name: "two answers", config: script("echo '{}{}'"), says: "not the JSON of the protocol"},
		{name: "a list", config: script("echo '[]'"), says: "not the JSON of the protocol"},
		{name: "other types", config: script(`echo '{"keywrapresults": {"annotation": 7}, "keyunwrapresults": {"optsdata": 7}}'`), says: "not the JSON of the protocol"},
		{name: "no base64", config: script(`echo '{"keywrapresults": {"annotation": "%"}, "keyunwrapresults": {"optsdata": "%"}}'`), says: "not the JSON of the protocol"},
		{name: "null", config: script("echo null"), says: "there is no (packet|secret) in its answer"},
		{name: "an empty object", config: script("echo '{}'"), says: "there is no (packet|secret) in its answer"},
		{name: "empty results", config: script(`echo '{"keywrapresults": {"annotation": ""}, "keyunwrapresults": {"optsdata": ""}}'`), says: "there is no (packet|secret) in its answer"},
		{name: "huge results", config: script(`printf '{"keywrapresults": {"annotation": "'`, "head -c 3000000 /dev/zero | tr '\\0' A", `printf '"}}'`), says: "its answer is over 1572864 bytes"},
		{name: "not there", config: config(`{"cmd": {"path": "/no/such/program"}}`), says: "/no/such/program: no such file or directory"},
		{name: "not on PATH", config: config(`{"cmd": {"path": "no-such-program"}}`), says: "no-such-program.*executable file not found"},
		{name: "not executable", config: config(`{"cmd": {"path": "/etc/passwd"}}`), says: "/etc/passwd: permission denied"},
		{name: "a directory", config: config(`{"cmd": {"path": "/etc"}}`), says: "/etc: (permission denied|is a directory)"},
		{name: "not a program", config: func(t *testing.T) []byte {
			path := filepath.Join(t.TempDir(), "provider")
			if err := os.WriteFile(path, []byte("\x00\x01"), 0o700); err != nil {
				t.Fatal(err)
			}
			return config(fmt.Sprintf(`{"cmd": {"path": %q}}`, path))(t)
		}, says: "exec format error"},
	}
}

// service is a provider that is a service, which handles each connection so.
func service(handle func(net.Conn)) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { conn.Close() })
				go handle(conn)
			}
		}()
		return config(fmt.Sprintf(`{"grpc": %q}`, l.Addr()))(t)
	}
}

// http2 is a provider that is a service of HTTP/2 without TLS.
func http2(handle http.HandlerFunc) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: handle, Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		done := make(chan struct{})
		go func() { defer close(done); server.Serve(l) }()
		t.Cleanup(func() { server.Close(); <-done })
		return config(fmt.Sprintf(`{"grpc": %q}`, l.Addr()))(t)
	}
}

// answer answers a gRPC call with some bytes and a status, unless that is empty.
func answer(body, status, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/grpc")
		if body != "" {
			h.Set("Trailer", "Grpc-Status, Grpc-Message")
			fmt.Fprint(w, body)
			w.(http.Flusher).Flush()
		}
		if status != "" {
			h.Set("Grpc-Status", status)
			h.Set("Grpc-Message", message)
		}
	}
}

// begin answers the beginning of a gRPC call, and no more.
func begin(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(http.StatusOK)
		fmt.Fprint(w, body)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

// ready is a provider of package testprovider.
func ready(o testprovider.Options) func(*testing.T) []byte {
	return func(t *testing.T) []byte { return readFile(t, testprovider.New(t, o).File) }
}

func faultyServices() []providerFault {
	faults := []providerFault{
		{name: "accepts and is silent", config: service(func(net.Conn) {}), hangs: true, says: "no answer within [12]s"},
		{name: "accepts and hangs up", config: service(func(c net.Conn) { c.Close() }), says: `127\.0\.0\.1`},
		{name: "speaks something else", config: service(func(c net.Conn) { fmt.Fprint(c, "220 mail.example.test ESMTP\r\n") }), says: `127\.0\.0\.1`},
		{name: "speaks HTTP/1.1", config: service(func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"); c.Close() }), says: `127\.0\.0\.1`},
		{name: "hanging service", config: http2(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), hangs: true, says: "no answer within [12]s"},
		{name: "answers headers only", config: http2(begin("")), hangs: true, says: "no answer within [12]s"},
		{name: "answers half a message", config: http2(begin("\x00\x00\x00\x10\x00half")), hangs: true, says: "no answer within [12]s"},
		{name: "floods", config: http2(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}), says: "its answer is over 1572864 bytes"},
		{name: "answers a web page", config: http2(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "No such page", http.StatusNotFound) }), says: "HTTP status 404, so it is no gRPC service"},
		{name: "no status", config: http2(answer("\x00\x00\x00\x00\x00", "", "")), says: "its answer has no gRPC status"},
		{name: "no message", config: http2(answer("", "0", "")), says: "not the JSON of the protocol"},
		{name: "an empty message", config: http2(answer("\x00\x00\x00\x00\x00", "0", "")), says: "not the JSON of the protocol"},
		{name: "a message of something", config: http2(answer("\x00\x00\x00\x00\x07\x0a\x05Hello", "0", "")), says: "not the JSON of the protocol"},
		{name: "a broken message", config: http2(answer("\x00\x00\x00\x01\x00\x0a\x05Hello", "0", "")), says: "not the JSON of the protocol"},
		{name: "an empty answer", config: http2(answer("\x00\x00\x00\x00\x04\x0a\x02{}", "0", "")), says: "there is no (packet|secret) in its answer"},
		{name: "refuses", config: http2(answer("", "7", "the vault is sealed")), says: "refused: gRPC status PERMISSION_DENIED: the vault is sealed"},
		{name: "refuses in lines", config: http2(answer("", "2", "fatal:%0A%1B[31mthe vault is sealed")), says: "refused: fatal:; .*the vault is sealed"},
		{name: "has not the method", config: http2(answer("", "12", "unknown service")), says: "cannot be asked: gRPC status UNIMPLEMENTED: unknown service"},
		{name: "is overloaded", config: http2(answer("", "14", "")), says: "cannot be asked: gRPC status UNAVAILABLE"},
		{name: "crashes", config: ready(testprovider.Options{Transport: testprovider.GRPC, Fault: testprovider.Crash}), says: "cannot be asked: "},
		{name: "nobody listens", config: ready(testprovider.Options{Transport: testprovider.GRPC, Fault: testprovider.Absent}), says: "connection refused"},
		{name: "no socket", config: config(`{"grpc": "unix:///no/such/socket"}`), says: "/no/such/socket: .*no such file or directory"},
		{name: "a file and no socket", config: config(`{"grpc": "unix:///etc/passwd"}`), says: "/etc/passwd: .*connection refused"},
	}
	return faults
}

// faultyTLS are services and configurations that do not fit each other.
func faultyTLS() []providerFault {
	edited := func(o testprovider.Options, edit func(t *testing.T, e *testprovider.Entry)) func(*testing.T) []byte {
		return func(t *testing.T) []byte {
			o.Transport = testprovider.GRPC
			p := testprovider.New(t, o)
			edit(t, &p.Entry)
			entry, err := json.Marshal(p.Entry)
			if err != nil {
				t.Fatal(err)
			}
			return config(string(entry))(t)
		}
	}
	tls, both := testprovider.Options{TLS: true}, testprovider.Options{ClientCert: true}
	return []providerFault{
		{name: "wrong authority", config: edited(tls, func(t *testing.T, e *testprovider.Entry) { e.TLS.RootCAFile = testprovider.NewAuthority(t).File }), says: "unknown authority"},
		{name: "wrong server name", config: edited(tls, func(_ *testing.T, e *testprovider.Entry) { e.TLS.ServerName = "else.test" }), says: "not else.test"},
		{name: "no client certificate", config: edited(both, func(_ *testing.T, e *testprovider.Entry) { e.TLS.CertFile, e.TLS.KeyFile = "", "" }), says: "certificate required"},
		{name: "another's client certificate", config: edited(both, func(t *testing.T, e *testprovider.Entry) {
			e.TLS.CertFile, e.TLS.KeyFile = testprovider.NewAuthority(t).Pair(t, "client")
		}), says: "tls: "},
		{name: "no authority file", config: edited(tls, func(_ *testing.T, e *testprovider.Entry) { e.TLS.RootCAFile = "/no/ca.pem" }), says: "root-ca-file /no/ca.pem: no such file"},
		{name: "plain service for TLS", config: edited(testprovider.Options{Fault: testprovider.NoTLS}, func(*testing.T, *testprovider.Entry) {}), says: "TLS handshake"},
		{name: "TLS for a plain client", config: edited(tls, func(_ *testing.T, e *testprovider.Entry) { e.TLS = nil }), says: `127\.0\.0\.1`},
	}
}
