package provider_test

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/config"
	keyproviderconfig "github.com/containers/ocicrypt/config/keyprovider-config"
	"github.com/containers/ocicrypt/keywrap"
	"github.com/containers/ocicrypt/keywrap/keyprovider"
	keyproviderpb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// Everything here has ocicrypt on the other side.

// ocicryptWrapper is ocicrypt's own client, configured by the file of a provider.
func ocicryptWrapper(t testing.TB, p *testprovider.Provider) keywrap.KeyWrapper {
	t.Helper()
	data, err := json.Marshal(p.Entry)
	if err != nil {
		t.Fatal(err)
	}
	var attrs keyproviderconfig.KeyProviderAttrs
	if err := json.Unmarshal(data, &attrs); err != nil {
		t.Fatal(err)
	}
	return keyprovider.NewKeyWrapper(p.Name, attrs)
}

// combined are the configurations as ocicrypt's users make them: with other keys, too.
func combined(t testing.TB, arg string) (*config.EncryptConfig, *config.DecryptConfig) {
	t.Helper()
	encrypt, err := config.EncryptWithKeyProvider([][]byte{[]byte(arg)})
	if err != nil {
		t.Fatal(err)
	}
	decrypt, err := config.DecryptWithKeyProvider([][]byte{[]byte(arg)})
	if err != nil {
		t.Fatal(err)
	}
	more, err := config.EncryptWithJwe([][]byte{[]byte("somebody's public key")})
	if err != nil {
		t.Fatal(err)
	}
	other, err := config.DecryptWithPrivKeys([][]byte{[]byte("somebody's private key")}, [][]byte{[]byte("password")})
	if err != nil {
		t.Fatal(err)
	}
	return config.CombineCryptoConfigs([]config.CryptoConfig{encrypt, more}).EncryptConfig,
		config.CombineCryptoConfigs([]config.CryptoConfig{decrypt, other}).DecryptConfig
}

func TestOcicryptAndThisPackage(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			p := testprovider.New(t, k.options)
			s, theirs := scheme(p.File), ocicryptWrapper(t, p)
			if id := theirs.GetAnnotationID(); id != layer.KeysAnnotationPrefix+"provider.vault" {
				t.Errorf("ocicrypt's annotation is %s", id)
			}
			for _, arg := range []string{"vault", "vault:", "vault:a=b", "vault:a:b:c"} {
				ec, dc := combined(t, arg)
				packet, err := theirs.WrapKeys(ec, []byte("secret"))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := unwrap(t, s, arg, layer.Packet{Scheme: "provider.vault", Data: packet}); err != nil || got != "secret" {
					t.Errorf("%s: wrapped by ocicrypt: %q, %v", arg, got, err)
				}
				ours := wrap(t, s, arg, "secret")
				if got, err := theirs.UnwrapKey(dc, ours.Data); err != nil || string(got) != "secret" {
					t.Errorf("%s: opened by ocicrypt: %q, %v", arg, got, err)
				}
			}
		})
	}
}

// ocicrypt shows its users what a provider refuses.
func TestOcicryptShowsRefusals(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			theirs := ocicryptWrapper(t, testprovider.New(t, k.options))
			ec, _ := combined(t, "vault:"+testprovider.Denied)
			if _, err := theirs.WrapKeys(ec, []byte("secret")); err == nil || !strings.Contains(err.Error(), "access denied") {
				t.Errorf("ocicrypt shows %v", err)
			}
		})
	}
}

// The requests are, byte for byte, what ocicrypt would send if it had nothing but the
// provider's own parameters.
func TestRequestsAreOcicrypts(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{Transport: testprovider.GRPC})
	s := scheme(p.File)
	for _, arg := range []string{"vault", "vault:", "vault:a:b<c>\xff"} {
		encrypt, err := config.EncryptWithKeyProvider([][]byte{[]byte(arg)})
		if err != nil {
			t.Fatal(err)
		}
		decrypt, err := config.DecryptWithKeyProvider([][]byte{[]byte(arg)})
		if err != nil {
			t.Fatal(err)
		}
		ec := config.CombineCryptoConfigs([]config.CryptoConfig{encrypt}).EncryptConfig
		packet := wrap(t, s, arg, `{"symkey":"secret"}`)
		if _, err := unwrap(t, s, arg, packet); err != nil {
			t.Fatal(err)
		}
		theirs := []keyprovider.KeyProviderKeyWrapProtocolInput{
			{Operation: keyprovider.OpKeyWrap, KeyWrapParams: keyprovider.KeyWrapParams{Ec: ec, OptsData: []byte(`{"symkey":"secret"}`)}},
			{Operation: keyprovider.OpKeyUnwrap, KeyUnwrapParams: keyprovider.KeyUnwrapParams{Dc: decrypt.DecryptConfig, Annotation: packet.Data}},
		}
		got := p.Requests(t)
		got = got[len(got)-2:]
		for i := range theirs {
			want, err := json.Marshal(theirs[i])
			if err != nil {
				t.Fatal(err)
			}
			if got[i] != string(want) {
				t.Errorf("%q:\nwant %s\n got %s", arg, want, got[i])
			}
		}
	}
}

// Parameters are what ocicrypt would have made of the same words.
func TestParametersAreOcicrypts(t *testing.T) {
	t.Parallel()
	s := scheme(testprovider.New(t, testprovider.Options{}).File)
	for _, arg := range []string{"vault", "vault:", "vault:a:b"} {
		r, err := s.Recipient(t.Context(), arg, new(keys.Files))
		if err != nil {
			t.Fatal(err)
		}
		id, err := s.Named(arg)
		if err != nil {
			t.Fatal(err)
		}
		encrypt, err := config.EncryptWithKeyProvider([][]byte{[]byte(arg)})
		if err != nil {
			t.Fatal(err)
		}
		want := encrypt.EncryptConfig.Parameters["vault"]
		for _, part := range []any{r, id} {
			got, err := part.(keys.Portable).Parameters()
			if err != nil || len(got) != 1 || len(got["vault"]) != 1 || string(got["vault"][0]) != string(want[0]) {
				t.Errorf("%s: %T: %q, %v, want %q", arg, part, got, err, want)
			}
		}
	}
}

// A client of grpc-go gets a status, whatever it asks for.
func TestServerForGRPCGo(t *testing.T) {
	t.Parallel()
	address := serve(t, provider.Server{Provider: testprovider.Vault{}})
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := keyproviderpb.NewKeyProviderServiceClient(conn)
	call := func(request string) error {
		_, err := client.WrapKey(t.Context(), &keyproviderpb.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(request)})
		return err
	}
	for _, c := range []struct {
		request string
		code    codes.Code
		says    string
	}{
		{`{"op":"keywrap","keywrapparams":{"optsdata":"c2VjcmV0"}}`, codes.OK, ""},
		{``, codes.InvalidArgument, "malformed"},
		{`{`, codes.InvalidArgument, "malformed"},
		{`{"op":"keyunwrap"}`, codes.InvalidArgument, "keywrap was called"},
		{`{"op":"keywrap"}`, codes.InvalidArgument, "nothing to work on"},
		{`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"a":["ZGVuaWVk"]}},"optsdata":"c2VjcmV0"}}`, codes.Unknown, "access denied"},
		{`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"a":[],"b":[]}},"optsdata":"c2VjcmV0"}}`, codes.Unknown, "several key providers"},
	} {
		if err := call(c.request); status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.says) {
			t.Errorf("%s: %v", c.request, err)
		}
	}
	if err := conn.Invoke(t.Context(), "/keyprovider.KeyProviderService/Nothing", new(keyproviderpb.KeyProviderKeyWrapProtocolInput),
		new(keyproviderpb.KeyProviderKeyWrapProtocolOutput)); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
	if _, err := client.WrapKey(t.Context(), new(keyproviderpb.KeyProviderKeyWrapProtocolInput), grpc.UseCompressor("gzip")); status.Code(err) == codes.OK {
		t.Error("a compressed request was taken")
	}
}

// serve runs a server until the test ends, and returns its address.
func serve(t testing.TB, s provider.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return l.Addr().String()
}
