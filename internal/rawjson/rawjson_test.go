package rawjson

import (
	"encoding/json"
	"errors"
	"testing"
)

var texts = []string{
	`{}`, ` { } `, `[]`, "[ \n]", `null`, ` "a\"b\\" `, `-1.50e+3`, `true`,
	`{"a":1}`, "{\n  \"a\" : [ 1 , {\"b\":null} ,\t\"x\" ] ,\n \"a\":\"\\u0041\"\n}\n",
	`[{"a":{}},[],""]`, `{"":{"":[[[]]]}}`, `{"a\\":"\\\""}`,
}

func TestParseKeepsText(t *testing.T) {
	t.Parallel()
	for _, text := range texts {
		v, err := Parse([]byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got := string(v.Bytes()); got != text {
			t.Errorf("Parse(%q).Bytes() = %q", text, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", " ", "{", `{"a"}`, `{"a":1,}`, "[1 2]", "{}x", "nul", `"`, "\xff"} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrInvalid) {
			t.Errorf("Parse(%q): %v, want ErrInvalid", text, err)
		}
	}
}

func TestAppendAndRemoveRestore(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{}`, `{ }`, `{"a":1}`, "{\n \"a\" : 1 ,\n \"b\": {}\n}", "{ \"a\":1 }"} {
		v, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		v.Append("x", String("1"))
		v.Append("y", NewObject())
		if !json.Valid(v.Bytes()) {
			t.Errorf("%q with members appended is %q", text, v.Bytes())
		}
		v.RemoveAppended(v.Index("y"))
		v.RemoveAppended(v.Index("x"))
		if got := string(v.Bytes()); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
}

func TestRemoveAndInsertRestore(t *testing.T) {
	t.Parallel()
	const text = "{ \"a\" : 1,\n\t\"b\":[2] ,\"c\" : {\"d\":3} }"
	for i := range 3 {
		v, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		it := v.Remove(i)
		if !json.Valid(v.Bytes()) {
			t.Errorf("without member %d: %q", i, v.Bytes())
		}
		v.Insert(i, it)
		if got := string(v.Bytes()); got != text {
			t.Errorf("member %d: got %q, want %q", i, got, text)
		}
	}
}

// Get must agree with encoding/json, which is what containerd reads manifests with.
func TestGetIsEncodingJSONs(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"mediaType":"a"}`, `{"mediatype":"a"}`, `{"mediaType":"a","MEDIATYPE":"b"}`,
		`{"MediaType":"a","mediaType":"b"}`, `{"media\u0054ype":"e"}`, `{"mediaTypes":"x"}`,
	} {
		var s struct {
			MediaType string `json:"mediaType"`
		}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		v, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if m := v.Get("mediaType"); m != nil {
			if err := json.Unmarshal(m.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
		}
		if got != s.MediaType {
			t.Errorf("%s: Get found %q, encoding/json %q", text, got, s.MediaType)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range texts {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := Parse(text)
		if json.Valid(text) != (err == nil) {
			t.Fatalf("valid is %v, Parse says %v", json.Valid(text), err)
		}
		if err != nil {
			return
		}
		if got := v.Bytes(); string(got) != string(text) {
			t.Fatalf("got %q, want %q", got, text)
		}
		if !v.IsObject() {
			return
		}
		v.Append("x", Raw("1"))
		if !json.Valid(v.Bytes()) {
			t.Fatalf("appending made %q", v.Bytes())
		}
		v.RemoveAppended(v.Len() - 1)
		if got := v.Bytes(); string(got) != string(text) {
			t.Fatalf("after appending and removing: got %q, want %q", got, text)
		}
	})
}
