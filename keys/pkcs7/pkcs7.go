// Package pkcs7 wraps layer secrets as CMS EnvelopedData (RFC 5652), for the holders of
// X.509 certificates.
package pkcs7

import "imgcrypt/keys"

// Name is the scheme's name.
const Name = "pkcs7"

// Scheme returns the scheme.
func Scheme() keys.Scheme { return keys.Scheme{Name: Name} }
