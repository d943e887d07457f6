package imgcrypt

import (
	"github.com/containerd/typeurl/v2"
	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PayloadURI is the type URL under which a [Payload] travels from containerd's
// client through containerd to the stream processor.
const PayloadURI = "io.containerd.ocicrypt.v1.Payload"

// PayloadToolIDs are the ids of the stream processors that get a [Payload]: one
// for each compression of a layer, named as containerd's documentation names them
// in its [stream_processors] tables. It is a variable because containerd's
// imgcrypt exports one; programs set it, if at all, before the first unpack.
var PayloadToolIDs = []string{
	"io.containerd.ocicrypt.decoder.v1.tar",
	"io.containerd.ocicrypt.decoder.v1.tar.gzip",
	"io.containerd.ocicrypt.decoder.v1.tar.zstd",
}

// Payload is what the stream processor needs to decrypt one layer. On the wire it
// is a protobuf Any with [PayloadURI] as type URL and this type's JSON as value.
type Payload struct {
	// DecryptConfig holds the keys. Its parameters are secret.
	DecryptConfig encconfig.DecryptConfig
	// Descriptor is that of the encrypted layer.
	Descriptor ocispec.Descriptor
}

// Payload registers itself because that is part of the interface of containerd's
// imgcrypt: its users hand one to typeurl.MarshalAny and unmarshal what they
// receive, without ever having to name the type URL.
func init() {
	typeurl.Register(&Payload{}, PayloadURI)
}
