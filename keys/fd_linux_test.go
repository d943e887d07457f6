package keys_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"imgcrypt/keys"
)

func TestReadFDOfTheRuntime(t *testing.T) {
	t.Parallel()
	// The runtime has one of these, too. It is never at its end.
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := new(keys.Files).ReadFD(fd); err == nil {
		t.Error("read a descriptor that is no file")
	}
}
