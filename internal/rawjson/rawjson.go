// Package rawjson edits JSON text without touching what it does not edit: white
// space, the order of members, escapes, numbers and unknown members stay as they
// were, byte for byte. Image manifests are content-addressed, so that is what it
// takes to undo an edit and arrive at the original digest.
package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrInvalid means that a text is not JSON.
var ErrInvalid = errors.New("not JSON")

// Value is one value of a parsed text: an object, an array, or anything else,
// which stays the text that it was.
type Value struct {
	open    byte    // '{' or '[', 0 for the rest
	text    []byte  // of the rest
	items   []*Item // members or elements
	inner   []byte  // white space in an object or array without items
	leading []byte  // white space around a whole text
	trailer []byte
}

// Item is a member of an object or an element of an array, with the white space
// around it. Separating commas belong to nobody and are written where needed.
type Item struct {
	// Lead is the white space before, Trail that between the value and the
	// comma or bracket that follows.
	Lead, Trail string
	// Key is the member's name as text, with its quotes; empty in an array.
	Key string
	// Mid is the colon with its white space; empty in an array.
	Mid   string
	Value *Value
}

// Name returns the member's name.
func (it *Item) Name() string {
	if n := len(it.Key); n >= 2 && strings.IndexByte(it.Key, '\\') < 0 && utf8.ValidString(it.Key) {
		return it.Key[1 : n-1]
	}
	var name string
	if json.Unmarshal([]byte(it.Key), &name) != nil {
		return it.Key
	}
	return name
}

// Parse parses a whole text.
func Parse(text []byte) (*Value, error) {
	if !json.Valid(text) {
		return nil, ErrInvalid
	}
	p := parser{text: text}
	leading := p.space()
	v := p.value()
	v.leading, v.trailer = []byte(leading), []byte(p.space())
	return v, nil
}

// String returns a value for a string.
func String(s string) *Value { return &Value{text: quote(s)} }

// Raw returns a value for a text that is valid JSON and neither an object nor an
// array.
func Raw(text string) *Value { return &Value{text: []byte(text)} }

// NewObject returns an empty object.
func NewObject() *Value { return &Value{open: '{'} }

// quote writes s as JSON without HTML escapes, as manifests are written.
func quote(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// A string always encodes.
	_ = enc.Encode(s)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Bytes returns the text.
func (v *Value) Bytes() []byte { return v.append(nil) }

func (v *Value) append(b []byte) []byte {
	b = append(b, v.leading...)
	if v.open == 0 {
		b = append(b, v.text...)
		return append(b, v.trailer...)
	}
	b = append(b, v.open)
	if len(v.items) == 0 {
		b = append(b, v.inner...)
	}
	for i, it := range v.items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, it.Lead...)
		b = append(b, it.Key...)
		b = append(b, it.Mid...)
		b = it.Value.append(b)
		b = append(b, it.Trail...)
	}
	b = append(b, v.open+2) // The closing brackets are two after the opening ones in ASCII.
	return append(b, v.trailer...)
}

// IsObject and IsArray say what v is; both are false for nil.
func (v *Value) IsObject() bool { return v != nil && v.open == '{' }

// IsArray says whether v is an array.
func (v *Value) IsArray() bool { return v != nil && v.open == '[' }

// Text returns the text of a value that is neither object nor array, and "" for
// those and for nil.
func (v *Value) Text() string {
	if v == nil || v.open != 0 {
		return ""
	}
	return string(v.text)
}

// SetText makes v the given text, which is valid JSON and neither object nor array.
func (v *Value) SetText(text string) { v.open, v.text, v.items, v.inner = 0, []byte(text), nil, nil }

// SetString makes v a string.
func (v *Value) SetString(s string) { v.SetText(string(quote(s))) }

// SetObject makes v an empty object.
func (v *Value) SetObject() { v.open, v.text, v.items, v.inner = '{', nil, nil, nil }

// Len returns how many members or elements v has; 0 for everything else.
func (v *Value) Len() int {
	if v == nil {
		return 0
	}
	return len(v.items)
}

// Element returns the value of the item at index i.
func (v *Value) Element(i int) *Value { return v.items[i].Value }

// Name returns the name of the member at index i.
func (v *Value) Name(i int) string { return v.items[i].Name() }

// Get returns the value of the member called name as encoding/json finds it for a
// struct: letter case is ignored, and of several the last one counts. nil: there
// is none.
func (v *Value) Get(name string) *Value {
	if i := v.Index(name); i >= 0 {
		return v.items[i].Value
	}
	return nil
}

// Index is the index of the member that [Value.Get] finds, or -1.
func (v *Value) Index(name string) int {
	if !v.IsObject() {
		return -1
	}
	for i, it := range slices.Backward(v.items) {
		if strings.EqualFold(it.Name(), name) {
			return i
		}
	}
	return -1
}

// GetExact returns the value of the member whose name is exactly name, as
// encoding/json finds it for a map: of several the last one counts.
func (v *Value) GetExact(name string) *Value {
	if !v.IsObject() {
		return nil
	}
	for _, it := range slices.Backward(v.items) {
		if it.Name() == name {
			return it.Value
		}
	}
	return nil
}

// Count returns how many members [Value.Get] would choose from.
func (v *Value) Count(name string) int {
	if !v.IsObject() {
		return 0
	}
	n := 0
	for _, it := range v.items {
		if strings.EqualFold(it.Name(), name) {
			n++
		}
	}
	return n
}

// Append adds a member at the end, compact, so that [Value.RemoveAppended] restores
// the text.
func (v *Value) Append(name string, value *Value) {
	it := &Item{Key: string(quote(name)), Mid: ":", Value: value}
	if n := len(v.items); n > 0 {
		last := v.items[n-1]
		it.Trail, last.Trail = last.Trail, ""
	} else {
		it.Trail, v.inner = string(v.inner), nil
	}
	v.items = append(v.items, it)
}

// Remove removes the member or element at index i and returns it, for
// [Value.Insert] to restore the text.
func (v *Value) Remove(i int) *Item {
	it := v.items[i]
	v.items = slices.Delete(v.items, i, i+1)
	return it
}

// RemoveAppended removes the member at index i the way [Value.Append] added it:
// where it is the last, the white space after it goes back to where it was.
func (v *Value) RemoveAppended(i int) {
	it := v.Remove(i)
	if i != len(v.items) {
		return
	}
	if i > 0 {
		v.items[i-1].Trail += it.Trail
		return
	}
	v.inner = []byte(it.Lead + it.Trail)
}

// Insert puts an item at index i, or at the end where there are fewer.
func (v *Value) Insert(i int, it *Item) {
	v.items = slices.Insert(v.items, min(i, len(v.items)), it)
}

// parser splits a text that is known to be valid.
type parser struct {
	text []byte
	at   int
}

func (p *parser) space() string {
	start := p.at
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	return string(p.text[start:p.at])
}

func (p *parser) value() *Value {
	switch p.text[p.at] {
	case '{', '[':
		return p.container()
	}
	return &Value{text: slices.Clone(p.scalar())}
}

func (p *parser) container() *Value {
	v := &Value{open: p.text[p.at]}
	p.at++
	lead := p.space()
	if p.text[p.at] == v.open+2 {
		p.at++
		v.inner = []byte(lead)
		return v
	}
	for {
		it := &Item{Lead: lead}
		if v.open == '{' {
			it.Key = string(p.scalar())
			start := p.at
			p.space()
			p.at++ // the colon
			p.space()
			it.Mid = string(p.text[start:p.at])
		}
		it.Value = p.value()
		it.Trail = p.space()
		v.items = append(v.items, it)
		p.at++ // a comma or the bracket
		if p.text[p.at-1] == v.open+2 {
			return v
		}
		lead = p.space()
	}
}

// scalar reads a string, a number or a literal.
func (p *parser) scalar() []byte {
	start := p.at
	if p.text[p.at] == '"' {
		for p.at++; p.text[p.at] != '"'; p.at++ {
			if p.text[p.at] == '\\' {
				p.at++
			}
		}
		p.at++
		return p.text[start:p.at]
	}
	for p.at < len(p.text) && strings.IndexByte(",]} \t\r\n", p.text[p.at]) < 0 {
		p.at++
	}
	return p.text[start:p.at]
}
