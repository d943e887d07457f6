package imgcrypt

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"imgcrypt/internal/rawjson"
)

// recordAnnotation is the annotation of a manifest or an index in which encryption
// remembers what decryption has to restore. Its value is base64 of a record's JSON.
const recordAnnotation = "org.imgcrypt.original"

// Values of record.Annotations and childRecord.Annotations: what the annotations
// were before one was added. Absent before is the empty string.
const (
	annotationsEmpty = "{}"
	annotationsNull  = "null"
)

// record is what a rewritten document remembers of the original: texts that were
// replaced and cannot be derived, and a checksum over the rest, which tells
// whether somebody else has rewritten the document since. Nothing in it is secret,
// and nothing in it is trusted: a forged one can at most spoil the digest of the
// decrypted manifest.
type record struct {
	Version int `json:"v"`
	// Check is the SHA-256, in hex, of the document with an empty record
	// annotation, and of this record without its check.
	Check string `json:"check,omitempty"`
	// Inexact says that restoring will not yield the original.
	Inexact bool `json:"inexact,omitempty"`
	// MediaType and Config are the texts of the document's and its config's
	// media types, where they were Docker's.
	MediaType string `json:"mediaType,omitempty"`
	Config    string `json:"config,omitempty"`
	// Annotations says what the document's annotations were.
	Annotations string `json:"annotations,omitempty"`
	// Children are those layers of a manifest of which something has to be
	// remembered, and those entries of an index that were changed, by index.
	Children []*childRecord `json:"children,omitempty"`
}

// childRecord is what is remembered of one layer or one index entry.
type childRecord struct {
	Index       int         `json:"i"`
	MediaType   string      `json:"mediaType,omitempty"`
	Annotations string      `json:"annotations,omitempty"`
	Data        *dataRecord `json:"data,omitempty"`
}

func (c *childRecord) empty() bool {
	return c.MediaType == "" && c.Annotations == "" && c.Data == nil
}

// dataRecord is where a descriptor's data was, and the text around it.
type dataRecord struct {
	Index int    `json:"i"`
	Key   string `json:"key"`
	Lead  string `json:"lead,omitempty"`
	Mid   string `json:"mid"`
	Trail string `json:"trail,omitempty"`
}

// child returns the record of child i, which it adds where there is none.
func (r *record) child(i int) *childRecord {
	at, found := slices.BinarySearchFunc(r.Children, i, func(c *childRecord, i int) int { return c.Index - i })
	if !found {
		r.Children = slices.Insert(r.Children, at, &childRecord{Index: i})
	}
	return r.Children[at]
}

// known returns the record of child i, or an empty one that is not added.
func (r *record) known(i int) *childRecord {
	for _, c := range r.Children {
		if c.Index == i {
			return c
		}
	}
	return &childRecord{Index: i}
}

// drop removes the record of child i.
func (r *record) drop(i int) {
	r.Children = slices.DeleteFunc(r.Children, func(c *childRecord) bool { return c.Index == i })
}

// readRecord returns the record of a document, and whether it is there. One that
// is damaged, or whose check fails, is marked as inexact.
func readRecord(d *document) (*record, bool) {
	node := d.root.Get("annotations").GetExact(recordAnnotation)
	if node == nil {
		return &record{Version: 1}, false
	}
	broken := &record{Version: 1, Inexact: true}
	var text string
	if json.Unmarshal(node.Bytes(), &text) != nil {
		return broken, true
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return broken, true
	}
	var r record
	if json.Unmarshal(data, &r) != nil || r.Version != 1 || !r.valid(len(d.children)) {
		return broken, true
	}
	before := node.Text()
	want := checksum(d.root, node, r)
	node.SetText(before)
	if r.Check != want {
		r.Inexact = true
	}
	return &r, true
}

// checksum computes the check of r in the document root, whose record annotation
// is node. It leaves node empty.
func checksum(root, node *rawjson.Value, r record) string {
	r.Check = ""
	node.SetString("")
	h := sha256.New()
	h.Write(root.Bytes())
	// A record always marshals: it holds strings and numbers.
	data, _ := json.Marshal(r)
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// write puts r into the document, whose annotations it makes where needed.
func (r *record) write(root *rawjson.Value) {
	a, was := makeAnnotations(root)
	node := a.GetExact(recordAnnotation)
	if node == nil {
		r.Annotations = was
		node = rawjson.String("")
		a.Append(recordAnnotation, node)
	}
	r.Check = checksum(root, node, *r)
	data, _ := json.Marshal(r)
	node.SetString(base64.StdEncoding.EncodeToString(data))
}

// remove removes the record from the document.
func (r *record) remove(root *rawjson.Value) {
	removeAnnotations(root, r.Annotations, func(name string) bool { return name == recordAnnotation })
}

// valid says whether a record that somebody else may have written can be applied
// to a document with n children.
func (r *record) valid(n int) bool {
	last := -1
	for _, c := range r.Children {
		if c == nil || c.Index <= last || c.Index >= n || !isString(c.MediaType) {
			return false
		}
		if d := c.Data; d != nil && !d.valid() {
			return false
		}
		last = c.Index
	}
	return isString(r.MediaType) && isString(r.Config)
}

func (d *dataRecord) valid() bool {
	var name string
	before, after, found := strings.Cut(d.Mid, ":")
	return d.Index >= 0 && found && blank(before) && blank(after) && blank(d.Lead) && blank(d.Trail) &&
		json.Unmarshal([]byte(d.Key), &name) == nil && strings.EqualFold(name, "data")
}

// blank says whether s is JSON white space or empty.
func blank(s string) bool { return strings.Trim(s, " \t\r\n") == "" }

// isString says whether text is empty or the JSON text of a string, without white
// space around it.
func isString(text string) bool {
	return text == "" || text[0] == '"' && text[len(text)-1] == '"' && json.Valid([]byte(text))
}

// unquote returns the string of a JSON text; "" where it is none.
func unquote(text string) string {
	var s string
	if json.Unmarshal([]byte(text), &s) != nil {
		return ""
	}
	return s
}

// makeAnnotations returns the annotations of node, which it adds where there are
// none, and says what was there if there was none to keep.
func makeAnnotations(node *rawjson.Value) (a *rawjson.Value, was string) {
	a = node.Get("annotations")
	switch {
	case a == nil:
		a = rawjson.NewObject()
		node.Append("annotations", a)
	case !a.IsObject():
		a.SetObject()
		was = annotationsNull
	case a.Len() == 0:
		was = annotationsEmpty
	}
	return a, was
}

// removeAnnotations removes those annotations of node that match, and, where none
// is left, brings back what was there before.
func removeAnnotations(node *rawjson.Value, was string, match func(name string) bool) {
	at := node.Index("annotations")
	if at < 0 {
		return
	}
	a := node.Element(at)
	for i := a.Len() - 1; i >= 0; i-- {
		if match(a.Name(i)) {
			a.RemoveAppended(i)
		}
	}
	switch {
	case !a.IsObject() || a.Len() > 0 || was == annotationsEmpty:
	case was == annotationsNull:
		a.SetText("null")
	default:
		node.RemoveAppended(at)
	}
}
