// Package module does the operations on tokens (PKCS #11): it loads a vendor's shared library and asks it. It
// is for the program imgcrypt-pkcs11 only, which is started for each operation, since such libraries crash,
// hang, print, and are configured by environment variables.
//
// It needs cgo. Without it, the package has nothing but the padding.
package module
