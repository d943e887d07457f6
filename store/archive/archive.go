// Package archive is a tar file with images as a store.
//
// [Open] and [Create] are for the tar of an OCI image layout, what skopeo and others call
// oci-archive:FILE. [OpenDocker] and [CreateDocker] are for what `docker save` writes and
// `docker load` reads, docker-archive:FILE.
//
// Nothing is unpacked: an archive is listed once, and then its files are read where they
// are, and checked against their digests while they are read. What is written goes into
// a new file beside the archive, one blob after the other, straight from its source. With
// a name, that file becomes the archive, in one step: whoever looks finds the old archive
// or the complete new one, also if the process is killed, which leaves a hidden file at
// most that the next one removes. Without a name, all that was written is gone with
// Close.
//
// An archive may be compressed as a whole, by gzip or zstd, as long as it is only read.
// Then its files are best read in their order: for one that lies before the last one,
// decompression begins anew.
package archive

import (
	"errors"

	"imgcrypt/store/internal/imageindex"
)

var (
	// ErrNotArchive means that a file is no archive of the kind that was expected. The
	// error says what it is, as far as that can be told.
	ErrNotArchive = errors.New("not such an archive")
	// ErrAmbiguous means that a name does not say which of several images is meant; it is
	// wrapped by a [*NameError].
	ErrAmbiguous = imageindex.ErrAmbiguous
)

// NameError says that a name does not name one image, and which names there are. It wraps
// [imgcrypt.ErrNotFound] or [ErrAmbiguous]. Its fields are Ref, the name that was looked
// for, Names, those that there are, and Err, what it wraps.
type NameError = imageindex.NameError
