// Package encryption encrypts, decrypts and authorises images for the clients of
// containerd.
//
// It exports what the package of the same path in containerd's imgcrypt exports,
// with the same meaning, so that a program which uses that one only changes its
// import paths: keys come as ocicrypt's CryptoConfig and DecryptConfig, images as
// descriptors in a content store. [NewStore] and [NewTags] put a containerd behind
// the interfaces of package imgcrypt, for programs that want more than these
// functions offer.
//
// What a function writes to the content store is labelled, so that it lives as long
// as the image that is made of it; until that image exists, a lease in the context
// has to keep it (see the client's WithLease), or containerd's garbage collection may
// remove it.
package encryption

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/errdefs"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// LayerFilter chooses layers: it returns true for those that are to be encrypted
// or decrypted. desc is the layer's descriptor, with its Platform set to the
// manifest's; where that is unknown, to an empty one, which no platform matches. A
// nil LayerFilter chooses every layer.
type LayerFilter func(desc ocispec.Descriptor) bool

// selection returns what the filter chooses.
func (lf LayerFilter) selection() imgcrypt.Selection {
	if lf == nil {
		return imgcrypt.Selection{}
	}
	return imgcrypt.Selection{Layer: func(l imgcrypt.Layer) bool {
		desc := l.Desc
		// Filters that were written for containerd's imgcrypt dereference it.
		desc.Platform = &ocispec.Platform{}
		if l.Platform != nil {
			*desc.Platform = *l.Platform
		}
		return lf(desc)
	}}
}

// EncryptImage encrypts the layers that lf chooses, of the manifest or of all
// manifests of the index desc, for the recipients in cc.EncryptConfig, and returns the
// new image's descriptor and whether it differs from desc. Nothing is tagged.
//
// A layer that is encrypted already gets the recipients added, which needs a key in
// cc.EncryptConfig.DecryptConfig. An index entry whose manifest is not in cs stays
// as it is. A filter that chooses no layer at all is an error that wraps
// imgcrypt.ErrNothingSelected: nobody should take a plain image for an encrypted one.
func EncryptImage(ctx context.Context, cs content.Store, desc ocispec.Descriptor, cc *encconfig.CryptoConfig, lf LayerFilter) (ocispec.Descriptor, bool, error) {
	if cc == nil || cc.EncryptConfig == nil {
		return ocispec.Descriptor{}, false, fmt.Errorf("no configuration for encryption: %w", errdefs.ErrInvalidArgument)
	}
	all, err := nodeSchemes()
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	recipients, err := keys.RecipientsFromParameters(ctx, all, recipientParameters(cc.EncryptConfig))
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	ids, err := Identities(&cc.EncryptConfig.DecryptConfig)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	return changed(desc)(imgcrypt.Encrypt(ctx, NewStore(cs), desc, imgcrypt.EncryptOptions{
		Recipients:  recipients,
		Identities:  ids,
		Select:      lf.selection(),
		KeepMissing: true,
	}))
}

// DecryptImage decrypts the encrypted layers that lf chooses, of the manifest or of
// all manifests of the index desc, with the keys in cc.DecryptConfig, and returns the
// new image's descriptor and whether it differs from desc. Nothing is tagged. An index
// entry whose manifest is not in cs stays as it is.
func DecryptImage(ctx context.Context, cs content.Store, desc ocispec.Descriptor, cc *encconfig.CryptoConfig, lf LayerFilter) (ocispec.Descriptor, bool, error) {
	if cc == nil {
		return ocispec.Descriptor{}, false, fmt.Errorf("no configuration for decryption: %w", errdefs.ErrInvalidArgument)
	}
	ids, err := Identities(cc.DecryptConfig)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	return changed(desc)(imgcrypt.Decrypt(ctx, NewStore(cs), desc, imgcrypt.DecryptOptions{
		Identities:  ids,
		Select:      lf.selection(),
		KeepMissing: true,
	}))
}

// changed turns the results of package imgcrypt into those of this one.
func changed(before ocispec.Descriptor) func(imgcrypt.Result, error) (ocispec.Descriptor, bool, error) {
	return func(res imgcrypt.Result, err error) (ocispec.Descriptor, bool, error) {
		if err != nil {
			return ocispec.Descriptor{}, false, err
		}
		return res.Desc, res.Desc.Digest != before.Digest, nil
	}
}

// nodeSchemes returns all schemes, as the environment wants them that ocicrypt reads.
func nodeSchemes() ([]keys.Scheme, error) {
	o, err := schemes.FromEnvironment(os.Getenv)
	return schemes.All(o), err
}

// recipientParameters returns what says whom to encrypt for. The configuration of
// modules for tokens is among the keys, where ocicrypt puts it.
func recipientParameters(ec *encconfig.EncryptConfig) keys.Parameters {
	params := keys.Parameters(ec.Parameters)
	if config := ec.DecryptConfig.Parameters[keys.ParamPKCS11Config]; len(config) > 0 && len(params[keys.ParamPKCS11Config]) == 0 {
		params = maps.Clone(params)
		params[keys.ParamPKCS11Config] = config
	}
	return params
}

// Identities returns the keys of a configuration, and those that need no naming: the key
// providers of the configuration that the environment names. A nil dc holds no keys. A
// key that cannot be used shuts out no other: where it is tried, it fails with the reason.
func Identities(dc *encconfig.DecryptConfig) ([]keys.Identity, error) {
	all, err := nodeSchemes()
	if err != nil {
		return nil, err
	}
	var ids []keys.Identity
	if dc != nil {
		if ids, err = keys.FromParameters(all, dc.Parameters); err != nil {
			return nil, err
		}
	}
	return append(ids, keys.Fallbacks(all, ids)...), nil
}

// GetImageEncryptConverter returns [EncryptImage] as a converter for containerd's
// converter.Convert, which holds a lease. It returns nil for an image that does not
// change.
func GetImageEncryptConverter(cc *encconfig.CryptoConfig, lf LayerFilter) converter.ConvertFunc {
	return convert(EncryptImage, cc, lf)
}

// GetImageDecryptConverter returns [DecryptImage] as a converter for containerd's
// converter.Convert, which holds a lease. It returns nil for an image that does not
// change.
func GetImageDecryptConverter(cc *encconfig.CryptoConfig, lf LayerFilter) converter.ConvertFunc {
	return convert(DecryptImage, cc, lf)
}

type imageFunc func(context.Context, content.Store, ocispec.Descriptor, *encconfig.CryptoConfig, LayerFilter) (ocispec.Descriptor, bool, error)

func convert(image imageFunc, cc *encconfig.CryptoConfig, lf LayerFilter) converter.ConvertFunc {
	return func(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
		made, changed, err := image(ctx, cs, desc, cc, lf)
		if err != nil || !changed {
			return nil, err
		}
		return &made, nil
	}
}

// IsEncryptedDiff says whether mediaType is that of an encrypted layer.
func IsEncryptedDiff(_ context.Context, mediaType string) bool {
	return layer.IsEncrypted(mediaType)
}

// HasEncryptedLayer says whether one of the layers is encrypted.
func HasEncryptedLayer(ctx context.Context, layerInfos []ocispec.Descriptor) bool {
	for _, desc := range layerInfos {
		if IsEncryptedDiff(ctx, desc.MediaType) {
			return true
		}
	}
	return false
}

// DecryptLayer unwraps the secret of the encrypted layer desc, whose bytes dataReader
// yields, with the keys in dc. It returns a descriptor with the plain layer's media
// type and desc's platform and nothing else, a reader of the plain bytes, and the
// digest in the secret, which is that of the plain bytes where this module encrypted
// the layer, and only a hint where another tool did.
//
// The reader checks the MAC and that there are desc.Size bytes; until it has returned
// io.EOF, nothing that it yielded is authentic. With unwrapOnly it is only found out
// whether a key opens the layer: nothing is read and only the error is set, if any.
func DecryptLayer(dc *encconfig.DecryptConfig, dataReader io.Reader, desc ocispec.Descriptor, unwrapOnly bool) (ocispec.Descriptor, io.Reader, digest.Digest, error) {
	plain, r, hint, err := decryptLayer(dc, dataReader, desc, unwrapOnly)
	if err != nil {
		return ocispec.Descriptor{}, nil, "", fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return plain, r, hint, nil
}

func decryptLayer(dc *encconfig.DecryptConfig, dataReader io.Reader, desc ocispec.Descriptor, unwrapOnly bool) (ocispec.Descriptor, io.Reader, digest.Digest, error) {
	var none ocispec.Descriptor
	if !layer.IsEncrypted(desc.MediaType) {
		return none, nil, "", fmt.Errorf("%q is not the media type of an encrypted layer: %w", desc.MediaType, errdefs.ErrInvalidArgument)
	}
	ids, err := Identities(dc)
	if err != nil {
		return none, nil, "", err
	}
	// The signature that callers rely on has no context to pass on.
	secret, err := keys.Open(context.Background(), ids, desc.Annotations)
	if err != nil || unwrapOnly {
		return none, nil, "", err
	}
	public, err := layer.ParsePublic(desc.Annotations)
	if err != nil {
		return none, nil, "", err
	}
	plain, err := layer.NewOpener(dataReader, secret, public, desc.Size)
	if err != nil {
		return none, nil, "", err
	}
	return ocispec.Descriptor{MediaType: layer.PlainMediaType(desc.MediaType), Platform: desc.Platform}, plain, secret.Digest, nil
}
