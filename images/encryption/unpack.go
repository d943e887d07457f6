package encryption

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

// WithDecryptedUnpack sends the keys in data, with each layer's own descriptor, to
// the stream processors named in imgcrypt.PayloadToolIDs. data is not written to, so
// one may serve any number of unpacks at once; its Descriptor is ignored. A nil data
// stands for one without keys. Payloads for other processors stay.
//
// The keys leave this process. [WithIdentities] does without that.
func WithDecryptedUnpack(data *imgcrypt.Payload) diff.ApplyOpt {
	return func(_ context.Context, desc ocispec.Descriptor, c *diff.ApplyConfig) error {
		payload := imgcrypt.Payload{Descriptor: desc}
		if data != nil {
			payload.DecryptConfig = data.DecryptConfig
		}
		return send(payload, c)
	}
}

// WithIdentities opens each encrypted layer's secret with ids, and sends it to the
// stream processors named in imgcrypt.PayloadToolIDs, wrapped for a key that is made for
// this layer of this unpack. So no key of the user leaves this process, keys that
// cannot, such as those on tokens, serve too, and each secret is unwrapped once.
//
// For a layer that none of ids opens, the descriptor is sent without a key, for the
// node may have one.
func WithIdentities(ids []keys.Identity) diff.ApplyOpt {
	return func(ctx context.Context, desc ocispec.Descriptor, c *diff.ApplyConfig) error {
		payload := imgcrypt.Payload{Descriptor: desc}
		if layer.IsEncrypted(desc.MediaType) {
			secret, err := keys.Open(ctx, ids, desc.Annotations)
			if err == nil {
				payload, err = oneTime(ctx, desc, secret)
			}
			if err != nil && !errors.Is(err, keys.ErrNoKey) && !errors.Is(err, layer.ErrMalformed) {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
		}
		return send(payload, c)
	}
}

// oneTime returns the payload of a layer whose secret is wrapped for a new key.
func oneTime(ctx context.Context, desc ocispec.Descriptor, secret layer.Secret) (imgcrypt.Payload, error) {
	payload := imgcrypt.Payload{Descriptor: desc}
	text, err := layer.MarshalSecret(secret)
	if err != nil {
		return payload, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return payload, err
	}
	recipient, err := jwe.NewRecipient(keys.PublicKey{Key: key.Public()})
	if err != nil {
		return payload, err
	}
	packet, err := recipient.Wrap(ctx, text)
	if err != nil {
		return payload, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return payload, err
	}
	payload.DecryptConfig.Parameters = keys.Parameters{keys.ParamPrivateKeys: {private}, keys.ParamPasswords: {{}}}
	// The image's own packets are of no use any more, and may be many.
	payload.Descriptor.Annotations = maps.Clone(desc.Annotations)
	maps.DeleteFunc(payload.Descriptor.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, layer.KeysAnnotationPrefix) })
	payload.Descriptor.Annotations[layer.KeysAnnotationPrefix+packet.Scheme] = layer.AddPacket("", packet)
	return payload, nil
}

// send adds the payload of one layer for our stream processors.
func send(payload imgcrypt.Payload, c *diff.ApplyConfig) error {
	message, err := typeurl.MarshalAny(&payload)
	if err != nil {
		return fmt.Errorf("payload for layer %s: %w", payload.Descriptor.Digest, err)
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
