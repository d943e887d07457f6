package imageindex

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// ErrAmbiguous means that a name does not say which of several images is meant.
var ErrAmbiguous = errors.New("several images")

// NameError says that a name does not name one image. It wraps [imgcrypt.ErrNotFound] or
// [ErrAmbiguous].
type NameError struct {
	// Ref is the name that was looked for.
	Ref string
	// Names are those that there are, in their order; an image without one is listed by
	// its digest, with an @ in front.
	Names []string
	Err   error
}

// maxListed bounds how many names an error lists.
const maxListed = 20

func (e *NameError) Error() string {
	var b strings.Builder
	switch ambiguous := errors.Is(e.Err, ErrAmbiguous); {
	case ambiguous && e.Ref == "":
		b.WriteString("no name is given")
	case ambiguous:
		b.WriteString(show(e.Ref) + " is more than one image")
	case e.Ref == "":
		b.WriteString("no image")
	default:
		b.WriteString("no image " + show(e.Ref))
	}
	for i, name := range e.Names {
		switch {
		case i == 0 && len(e.Names) == 1:
			b.WriteString("; there is ")
		case i == 0:
			b.WriteString("; there are ")
		case i == maxListed:
			fmt.Fprintf(&b, ", and %d more", len(e.Names)-i)
			return b.String()
		default:
			b.WriteString(", ")
		}
		b.WriteString(show(name))
	}
	return b.String()
}

func (e *NameError) Unwrap() error { return e.Err }

// show quotes what would not be shown as one word, since anyone may have written it.
func show(name string) string {
	if len(name) > 300 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == ',' }) {
		return fmt.Sprintf("%.300q", name)
	}
	return name
}

// Find returns the index of the image that ref names in x.Entries. "" is the only image,
// "@0" the first one, "@sha256:…" the one with that digest; everything else is a name of
// the specification or of containerd. Otherwise the error is a [*NameError].
func (x *Index) Find(ref string) (int, error) {
	found := x.match(ref)
	if len(found) == 0 {
		return 0, x.nameError(ref, imgcrypt.ErrNotFound)
	}
	for _, i := range found[1:] {
		// Twice the same image is one.
		if x.Entries[i].Digest != x.Entries[found[0]].Digest {
			return 0, x.nameError(ref, ErrAmbiguous)
		}
	}
	return found[0], nil
}

// Name returns what Find and Set take for the entry at i alone.
func (x *Index) Name(i int) string {
	entry := x.Entries[i]
	candidates := []string{
		entry.Annotations[ocispec.AnnotationRefName], entry.Annotations[ContainerdName], "", "@" + entry.Digest.String(),
	}
	for _, ref := range candidates {
		if found := x.match(ref); len(found) == 1 && found[0] == i && (ref != "" || unnamed(entry)) {
			return ref
		}
	}
	return "@" + strconv.Itoa(i)
}

// match returns the entries that ref may mean.
func (x *Index) match(ref string) (found []int) {
	if text, ok := strings.CutPrefix(ref, "@"); ok {
		if at, err := strconv.Atoi(text); err == nil {
			if at >= 0 && at < len(x.Entries) && strconv.Itoa(at) == text {
				found = append(found, at)
			}
			return found
		}
		return x.where(func(e ocispec.Descriptor) bool { return e.Digest == digest.Digest(text) })
	}
	if ref == "" {
		return x.where(func(ocispec.Descriptor) bool { return true })
	}
	found = x.where(func(e ocispec.Descriptor) bool { return e.Annotations[ocispec.AnnotationRefName] == ref })
	if len(found) == 0 {
		found = x.where(func(e ocispec.Descriptor) bool { return e.Annotations[ContainerdName] == ref })
	}
	return found
}

func (x *Index) where(is func(ocispec.Descriptor) bool) (found []int) {
	for i, e := range x.Entries {
		if is(e) {
			found = append(found, i)
		}
	}
	return found
}

func unnamed(e ocispec.Descriptor) bool {
	return e.Annotations[ocispec.AnnotationRefName] == "" && e.Annotations[ContainerdName] == ""
}

func (x *Index) nameError(ref string, err error) error {
	count := make(map[string]int)
	for _, entry := range x.Entries {
		count[entry.Annotations[ocispec.AnnotationRefName]]++
	}
	e := &NameError{Ref: ref, Err: err}
	for _, entry := range x.Entries {
		name := entry.Annotations[ocispec.AnnotationRefName]
		if full := entry.Annotations[ContainerdName]; full != "" && (name == "" || count[name] > 1) {
			name = full
		}
		if name == "" {
			name = "@" + entry.Digest.String()
		}
		e.Names = append(e.Names, name)
	}
	return e
}

// nameGrammar is that of org.opencontainers.image.ref.name, and maxName how many bytes
// such a name may have here.
var nameGrammar = regexp.MustCompile(`^[A-Za-z0-9]+((-|\.|_|:|@|\+|--)[A-Za-z0-9]+)*(/[A-Za-z0-9]+((-|\.|_|:|@|\+|--)[A-Za-z0-9]+)*)*$`)

const maxName = 1024

func checkName(name string) error {
	if name == "" || len(name) <= maxName && nameGrammar.MatchString(name) {
		return nil
	}
	return fmt.Errorf("the name %.100q: names are letters and digits with one of -._:@+/ or -- between them", name)
}
