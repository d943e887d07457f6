// Package schemes lists the ways of wrapping a layer's secret that this module
// knows. A new one is a package below keys and a line here.
package schemes

import (
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
)

// All returns every scheme, ordered by name.
func All() []keys.Scheme {
	return []keys.Scheme{
		jwe.Scheme(),
	}
}
