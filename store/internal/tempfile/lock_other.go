//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package tempfile

import (
	"errors"
	"os"
)

func tryLock(*os.File) error { return errors.ErrUnsupported }
