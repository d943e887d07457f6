package testkeys

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"imgcrypt/internal/testprovider"
)

// Provider enters another key provider into the user's configuration. An empty Name or Seed is replaced by one that
// no other has.
func (u *User) Provider(t testing.TB, o testprovider.Options) Holder {
	t.Helper()
	u.made++
	if o.Name == "" {
		o.Name = fmt.Sprintf("vault%d", u.made)
	}
	if o.Seed == "" {
		o.Seed = o.Name
	}
	p := testprovider.New(t, o)
	u.providers[p.Name] = p.Entry
	write(t, u.ProviderConfig(), config(t, u.providers))
	name := "provider:" + p.Name
	return Holder{
		Scheme: "provider", Recipient: name, Keys: []string{name}, Names: []string{p.Name},
		Config: config(t, map[string]testprovider.Entry{p.Name: p.Entry}),
	}
}

func config(t testing.TB, providers map[string]testprovider.Entry) string {
	t.Helper()
	text, err := json.MarshalIndent(map[string]any{"key-providers": providers}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ProviderConfig is the path of the user's configuration of key providers. The file is there once there is a provider.
func (u *User) ProviderConfig() string { return filepath.Join(u.dir, "providers.conf") }
