// Package provider wraps layer secrets by key providers: programs and services that
// hold keys, and are asked by ocicrypt's key-provider protocol.
package provider

import (
	"time"

	"imgcrypt/keys"
)

// Name is the scheme's name, and the first part of its packets' names.
const Name = "provider"

// Config says where providers are found.
type Config struct {
	// File is the configuration file, as in ocicrypt's OCICRYPT_KEYPROVIDER_CONFIG.
	// It is read when a provider is needed. Empty means that there is none.
	File string
	// Timeout bounds one call of a provider; zero means 30 seconds.
	Timeout time.Duration
}

// Scheme returns the scheme.
func Scheme(Config) keys.Scheme { return keys.Scheme{Name: Name} }
