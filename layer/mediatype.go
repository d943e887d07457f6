package layer

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const encryptedSuffix = "+encrypted"

// dockerLayerTypes are Docker's media types of layers, with the OCI type of the
// same compression.
var dockerLayerTypes = map[string]string{
	"application/vnd.docker.image.rootfs.diff.tar":              ocispec.MediaTypeImageLayer,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":         ocispec.MediaTypeImageLayerGzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":         ocispec.MediaTypeImageLayerZstd,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":      "application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd": "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
}

// IsEncrypted says whether a media type is that of an encrypted layer.
func IsEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, encryptedSuffix) }

// OCIMediaType returns the OCI type for a Docker layer's media type, and any other
// media type as it is.
func OCIMediaType(mediaType string) string {
	if oci, ok := dockerLayerTypes[mediaType]; ok {
		return oci
	}
	return mediaType
}

// EncryptedMediaType returns the media type of a layer of the given one once it is
// encrypted. That of an encrypted layer stays as it is.
func EncryptedMediaType(mediaType string) string {
	if IsEncrypted(mediaType) {
		return mediaType
	}
	return OCIMediaType(mediaType) + encryptedSuffix
}

// PlainMediaType is the inverse of [EncryptedMediaType] for OCI types. That of a
// plain layer stays as it is.
func PlainMediaType(mediaType string) string { return strings.TrimSuffix(mediaType, encryptedSuffix) }
