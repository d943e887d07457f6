package encryption

import (
	"context"
	"fmt"
	"maps"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// WithDecryptedUnpack sends the keys in data, with each layer's own descriptor, to
// the stream processors named in imgcrypt.PayloadToolIDs. data is not written to, so
// one may serve any number of unpacks at once; its Descriptor is ignored. A nil data
// stands for one without keys. Payloads for other processors stay.
func WithDecryptedUnpack(data *imgcrypt.Payload) diff.ApplyOpt {
	return func(_ context.Context, desc ocispec.Descriptor, c *diff.ApplyConfig) error {
		payload := imgcrypt.Payload{Descriptor: desc}
		if data != nil {
			payload.DecryptConfig = data.DecryptConfig
		}
		message, err := typeurl.MarshalAny(&payload)
		if err != nil {
			return fmt.Errorf("payload for layer %s: %w", desc.Digest, err)
		}
		// The map may be the caller's, who gave it to diff.WithPayloads for all layers.
		payloads := maps.Clone(c.ProcessorPayloads)
		if payloads == nil {
			payloads = make(map[string]typeurl.Any, len(imgcrypt.PayloadToolIDs))
		}
		for _, id := range imgcrypt.PayloadToolIDs {
			payloads[id] = message
		}
		c.ProcessorPayloads = payloads
		return nil
	}
}

// WithUnpackConfigApplyOpts adds an option for the applying of each layer to an
// unpack. It is what turns [WithDecryptedUnpack] into an option of the client's
// Image.Unpack.
func WithUnpackConfigApplyOpts(opt diff.ApplyOpt) containerd.UnpackOpt {
	return func(_ context.Context, uc *containerd.UnpackConfig) error {
		uc.ApplyOpts = append(uc.ApplyOpts, opt)
		return nil
	}
}

// WithUnpackOpts adds options for the unpacking to a pull.
func WithUnpackOpts(opts []containerd.UnpackOpt) containerd.RemoteOpt {
	return func(_ *containerd.Client, c *containerd.RemoteContext) error {
		c.UnpackOpts = append(c.UnpackOpts, opts...)
		return nil
	}
}
