package imageindex_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/imageindex"
)

func descOf(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(text), Size: int64(len(text))}
}

// index returns an index.json with entries that have the given ref.name and full name,
// both of which may be empty.
func index(t testing.TB, names ...string) *imageindex.Index {
	t.Helper()
	var list []ocispec.Descriptor
	for i := 0; i < len(names); i += 2 {
		desc := descOf(fmt.Sprint(i / 2))
		desc.Annotations = map[string]string{}
		if names[i] != "" {
			desc.Annotations[ocispec.AnnotationRefName] = names[i]
		}
		if names[i+1] != "" {
			desc.Annotations[imageindex.ContainerdName] = names[i+1]
		}
		list = append(list, desc)
	}
	text, err := json.Marshal(ocispec.Index{Manifests: list})
	if err != nil {
		t.Fatal(err)
	}
	x, err := imageindex.Parse([]byte(strings.Replace(string(text), `"schemaVersion":0`, `"schemaVersion":2`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestFind(t *testing.T) {
	t.Parallel()
	ambiguous, none := imageindex.ErrAmbiguous, imgcrypt.ErrNotFound
	for _, tt := range []struct {
		names []string
		ref   string
		at    int
		err   error
	}{
		{nil, "", 0, none},
		{nil, "v1", 0, none},
		{[]string{"", ""}, "", 0, nil},
		{[]string{"v1", ""}, "", 0, nil},
		{[]string{"v1", ""}, "v1", 0, nil},
		{[]string{"v1", ""}, "v2", 0, none},
		{[]string{"v1", "", "v2", ""}, "v2", 1, nil},
		{[]string{"v1", "", "v2", ""}, "", 0, ambiguous},
		{[]string{"", "", "", ""}, "", 0, ambiguous},
		{[]string{"", "", "", ""}, "@1", 1, nil},
		{[]string{"", "", "", ""}, "@2", 0, none},
		{[]string{"", ""}, "@-1", 0, none},
		{[]string{"", ""}, "@+0", 0, none},
		{[]string{"", ""}, "@00", 0, none},
		{[]string{"", ""}, "@", 0, none},
		{[]string{"", "", "", ""}, "@" + digest.FromString("1").String(), 1, nil},
		{[]string{"", "", "", ""}, "@" + digest.FromString("2").String(), 0, none},
		{[]string{"latest", "docker.io/library/a:latest", "latest", "docker.io/library/b:latest"}, "latest", 0, ambiguous},
		{[]string{"latest", "docker.io/library/a:latest", "latest", "docker.io/library/b:latest"}, "docker.io/library/b:latest", 1, nil},
		// The name of the specification goes first.
		{[]string{"", "x", "x", ""}, "x", 1, nil},
	} {
		x := index(t, tt.names...)
		at, err := x.Find(tt.ref)
		if at != tt.at || !errors.Is(err, tt.err) {
			t.Errorf("%q, %q: got %d, %v", tt.names, tt.ref, at, err)
		}
		var nameError *imageindex.NameError
		if err != nil && (!errors.As(err, &nameError) || nameError.Ref != tt.ref || len(nameError.Names) != len(tt.names)/2) {
			t.Errorf("%q, %q: error %#v", tt.names, tt.ref, err)
		}
	}
}

// Twice the same image under one name is one image to find, but not one to replace.
func TestSameTwice(t *testing.T) {
	t.Parallel()
	entry := fmt.Sprintf(`{"mediaType":"a/b","digest":"%s","size":1,"annotations":{"%s":"v1"}}`, digest.FromString("x"), ocispec.AnnotationRefName)
	x, err := imageindex.Parse([]byte(`{"manifests":[` + entry + `,` + entry + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if at, err := x.Find("v1"); err != nil || at != 0 {
		t.Error(at, err)
	}
	if err := x.Set("v1", descOf("new")); !errors.Is(err, imageindex.ErrAmbiguous) {
		t.Error(err)
	}
	if name := x.Name(1); name != "@1" {
		t.Error(name)
	}
}

func TestNameErrors(t *testing.T) {
	t.Parallel()
	many := make([]string, 2*25)
	for i := range 25 {
		many[2*i] = fmt.Sprint("v", i)
	}
	for _, tt := range []struct {
		names     []string
		ref, want string
	}{
		{nil, "", "no image"},
		{nil, "v1", "no image v1"},
		{[]string{"v1", ""}, "v2", "no image v2; there is v1"},
		{[]string{"v1", "", "", ""}, "", "no name is given; there are v1, @" + digest.FromString("1").String()},
		{[]string{"latest", "a:latest", "latest", "b:latest"}, "latest", "latest is more than one image; there are a:latest, b:latest"},
		{[]string{"a\x1b[31m, b", ""}, "c d", `no image "c d"; there is "a\x1b[31m, b"`},
		{many, "x", "no image x; there are v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, and 5 more"},
	} {
		_, err := index(t, tt.names...).Find(tt.ref)
		if err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

// By the name that an entry is said to have it is found, and replaced alone.
func TestName(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{
		{"", ""}, {"v1", ""}, {"", "full"}, {"v1", "", "v2", ""}, {"latest", "a", "latest", "b"}, {"latest", "", "latest", ""},
		{"", "", "", ""}, {"", "", "v1", ""}, {"x", "", "", "x"}, {"v1", "v1", "v1", "v1"},
	} {
		for i := range len(names) / 2 {
			x := index(t, names...)
			name := x.Name(i)
			if at, err := x.Find(name); err != nil || at != i {
				t.Errorf("%q: %q finds %d, %v", names, name, at, err)
			}
			if err := x.Set(name, descOf("new")); err != nil {
				t.Errorf("%q: set %q: %v", names, name, err)
				continue
			}
			if len(x.Entries) != len(names)/2 || x.Entries[i].Digest != descOf("new").Digest {
				t.Errorf("%q: %q replaced something else", names, name)
			}
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		names []string
		ref   string
		at    int // of the new one
		count int
		err   error
	}{
		{nil, "", 0, 1, nil},
		{nil, "v1", 0, 1, nil},
		{[]string{"", ""}, "", 0, 1, nil},
		{[]string{"", ""}, "v1", 1, 2, nil},
		{[]string{"v1", ""}, "", 0, 1, imageindex.ErrAmbiguous},
		{[]string{"", "", "v1", ""}, "", 0, 2, imageindex.ErrAmbiguous},
		{[]string{"v1", "", "v2", ""}, "v2", 1, 2, nil},
		{[]string{"v1", "", "v2", ""}, "v3", 2, 3, nil},
		{[]string{"latest", "a", "latest", "b"}, "latest", 0, 2, imageindex.ErrAmbiguous},
		{[]string{"latest", "a", "latest", "b"}, "b", 1, 2, nil},
		{[]string{"", "", "", ""}, "@1", 1, 2, nil},
		{[]string{"", "", "", ""}, "@2", 0, 2, imgcrypt.ErrNotFound},
		// An odd name that is there may be used.
		{[]string{"a b", ""}, "a b", 0, 1, nil},
	} {
		x := index(t, tt.names...)
		before := string(x.Bytes())
		err := x.Set(tt.ref, descOf("new"))
		if !errors.Is(err, tt.err) || len(x.Entries) != tt.count {
			t.Errorf("%q, %q: %d entries, %v", tt.names, tt.ref, len(x.Entries), err)
			continue
		}
		if err != nil {
			if string(x.Bytes()) != before {
				t.Errorf("%q, %q: it was changed", tt.names, tt.ref)
			}
			continue
		}
		again, err := imageindex.Parse(x.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(x.Entries, again.Entries); diff != "" {
			t.Error(diff)
		}
		if got := x.Entries[tt.at]; got.Digest != descOf("new").Digest || got.Size != 3 || got.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("%q, %q: %+v", tt.names, tt.ref, got)
		}
	}
	x := index(t)
	for _, desc := range []ocispec.Descriptor{{}, {MediaType: "a/b", Digest: "sha256:x"}, {Digest: descOf("").Digest}, {MediaType: "a/b", Digest: descOf("").Digest, Size: -1}} {
		if err := x.Set("v1", desc); !errors.Is(err, imgcrypt.ErrManifest) {
			t.Errorf("%+v: %v", desc, err)
		}
	}
}

// What an image is for is told by its entry.
func TestSetPlatform(t *testing.T) {
	t.Parallel()
	x := index(t)
	desc := descOf("arm")
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7", OSFeatures: []string{"a"}}
	desc.ArtifactType = "an/artifact"
	for _, want := range []ocispec.Descriptor{desc, desc, descOf("index"), desc} {
		if err := x.Set("v1", want); err != nil {
			t.Fatal(err)
		}
		want.Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
		if diff := cmp.Diff([]ocispec.Descriptor{want}, x.Entries); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSetTooLarge(t *testing.T) {
	t.Parallel()
	x, err := imageindex.Parse([]byte(`{"manifests":[],"x":"` + strings.Repeat("x", imageindex.MaxSize-300) + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Set("v1", descOf("x")); err != nil {
		t.Error(err)
	}
	if err := x.Set("v2", descOf("x")); !errors.Is(err, imgcrypt.ErrManifest) {
		t.Error(err)
	}
}

// Whatever is in an index.json: what is accepted can be edited, names what was set, and
// keeps the other entries.
func FuzzIndex(f *testing.F) {
	entry := `{"mediaType":"a/b","digest":"` + digest.FromString("x").String() + `","size":1,"annotations":{"` + ocispec.AnnotationRefName + `":"v1"}}`
	for _, text := range []string{
		`{"schemaVersion":2,"manifests":[]}`, `{"manifests":null}`, `{}`, ` { "manifests" : [ ` + entry + ` , ` + entry + ` ] } `,
		`{"schemaVersion":2,"Manifests":[` + entry + `],"x":[{}]}`, `{"manifests":[{"platform":null,"annotations":null,"urls":[]}]}`,
		`{"manifests":[{"\u0064igest":"sha256:0","annotations":{"\u006f":"v1"}}]}`,
	} {
		f.Add([]byte(text), "v1")
		f.Add([]byte(text), "")
		f.Add([]byte(text), "@0")
	}
	f.Fuzz(func(t *testing.T, text []byte, ref string) {
		x, err := imageindex.Parse(text)
		if err != nil {
			if !errors.Is(err, imgcrypt.ErrManifest) {
				t.Errorf("%v", err)
			}
			return
		}
		for i := range x.Entries {
			if at, err := x.Find(x.Name(i)); err != nil || at != i {
				t.Errorf("%q finds %d, not %d: %v", x.Name(i), at, i, err)
			}
		}
		before := x.Entries
		_, _ = x.Find(ref)
		if err := x.Set(ref, descOf("new")); err != nil {
			return
		}
		again, err := imageindex.Parse(x.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(x.Entries, again.Entries); diff != "" {
			t.Error(diff)
		}
		changed := 0
		for i, e := range again.Entries {
			if i >= len(before) || !cmp.Equal(e, before[i]) {
				changed++
			}
		}
		if changed > 1 {
			t.Errorf("%d entries changed", changed)
		}
		if strings.HasPrefix(ref, "@") {
			return
		}
		if at, err := again.Find(ref); err != nil || again.Entries[at].Digest != descOf("new").Digest {
			t.Errorf("%q is %d, %v", ref, at, err)
		}
	})
}
