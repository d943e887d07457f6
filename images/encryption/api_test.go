package encryption_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// exported returns what a folder's package exports, apart from methods and fields,
// with the types of its functions as they are written.
func exported(t *testing.T, dir string) []string {
	t.Helper()
	fset := token.NewFileSet()
	var list []string
	for _, name := range must(filepath.Glob(filepath.Join(dir, "*.go"))) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source := must(os.ReadFile(name))
		file := must(parser.ParseFile(fset, name, source, 0))
		start := fset.File(file.Pos()).Base()
		text := func(from, to token.Pos) string { return string(source[int(from)-start : int(to)-start]) }
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Recv == nil {
					list = append(list, text(d.Pos(), d.Type.End()))
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() {
							list = append(list, d.Tok.String()+" "+s.Name.Name)
						}
					case *ast.ValueSpec:
						for _, name := range s.Names {
							if name.IsExported() {
								list = append(list, d.Tok.String()+" "+name.Name)
							}
						}
					}
				}
			}
		}
	}
	slices.Sort(list)
	return list
}

// These are what containerd's imgcrypt v2 exports, and what its users so rely on, and
// the six functions that are ours.
func TestExported(t *testing.T) {
	t.Parallel()
	want := []string{
		"func CheckAuthorization(ctx context.Context, cs content.Store, desc ocispec.Descriptor, dc *encconfig.DecryptConfig) error",
		"func DecryptImage(ctx context.Context, cs content.Store, desc ocispec.Descriptor, cc *encconfig.CryptoConfig, lf LayerFilter) (ocispec.Descriptor, bool, error)",
		"func DecryptLayer(dc *encconfig.DecryptConfig, dataReader io.Reader, desc ocispec.Descriptor, unwrapOnly bool) (ocispec.Descriptor, io.Reader, digest.Digest, error)",
		"func EncryptImage(ctx context.Context, cs content.Store, desc ocispec.Descriptor, cc *encconfig.CryptoConfig, lf LayerFilter) (ocispec.Descriptor, bool, error)",
		"func GetImageDecryptConverter(cc *encconfig.CryptoConfig, lf LayerFilter) converter.ConvertFunc",
		"func GetImageEncryptConverter(cc *encconfig.CryptoConfig, lf LayerFilter) converter.ConvertFunc",
		"func HasEncryptedLayer(ctx context.Context, layerInfos []ocispec.Descriptor) bool",
		"func IsEncryptedDiff(_ context.Context, mediaType string) bool",
		"func WithAuthorizationCheck(dc *encconfig.DecryptConfig) containerd.NewContainerOpts",
		"func WithDecryptedUnpack(data *imgcrypt.Payload) diff.ApplyOpt",
		"func WithUnpackConfigApplyOpts(opt diff.ApplyOpt) containerd.UnpackOpt",
		"func WithUnpackOpts(opts []containerd.UnpackOpt) containerd.RemoteOpt",
		"type LayerFilter",

		"func CheckAuthorizationFor(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, ids []keys.Identity, platform platforms.MatchComparer) error",
		"func ExplainUnpack(ctx context.Context, cs content.Store, desc ocispec.Descriptor, ids []keys.Identity, platform platforms.MatchComparer, failed error) error",
		"func Identities(dc *encconfig.DecryptConfig) ([]keys.Identity, error)",
		"func NewStore(cs content.Store) imgcrypt.Store",
		"func NewTags(is images.Store) imgcrypt.Tags",
		"func WithIdentities(ids []keys.Identity) diff.ApplyOpt",
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, exported(t, ".")); diff != "" {
		t.Error(diff)
	}
}

func TestParsehelpersExported(t *testing.T) {
	t.Parallel()
	want := []string{
		"func CreateCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error)",
		"func CreateDecryptCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error)",
		"func CreateGPGClient(args EncArgs) (ocicrypt.GPGClient, error)",
		"type EncArgs",
	}
	if diff := cmp.Diff(want, exported(t, "parsehelpers")); diff != "" {
		t.Error(diff)
	}
}
