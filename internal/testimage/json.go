package testimage

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// object is a JSON object whose members have an order, unlike a Go map's.
type object []member

type member struct {
	name  string
	value any
}

// add appends a member.
func (o *object) add(name string, value any) { *o = append(*o, member{name, value}) }

// stringMap returns the object with the map's members sorted by name.
func stringMap(m map[string]string) object {
	o := object{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		o.add(k, m[k])
	}
	return o
}

// render writes a document of objects, []any, and values that encoding/json writes.
func render(doc any, f Format) []byte {
	r := renderer{format: f}
	r.space()
	r.value(doc, 0)
	r.space()
	return []byte(r.String())
}

type renderer struct {
	strings.Builder
	format Format
	spaces int
}

func (r *renderer) odd() bool { return r.format == Odd || r.format == Escaped }

// space writes one of several kinds of white space, in turn, where the format is an odd one.
func (r *renderer) space() {
	if r.odd() {
		kinds := []string{" ", "\n", "", "\t", "\r\n", "  \n\t"}
		r.WriteString(kinds[r.spaces%len(kinds)])
		r.spaces++
	}
}

// newLine starts the line of a member where the format is the indented one.
func (r *renderer) newLine(depth int) {
	if r.format == Indented {
		r.WriteString("\n" + strings.Repeat("   ", depth))
	}
	r.space()
}

func (r *renderer) value(v any, depth int) {
	switch v := v.(type) {
	case object:
		if r.odd() {
			v = slices.Clone(v)
			slices.Reverse(v)
		}
		r.list("{", "}", len(v), depth, func(i int) {
			r.value(v[i].name, depth)
			r.space()
			r.WriteByte(':')
			if r.format == Indented {
				r.WriteByte(' ')
			}
			r.space()
			r.value(v[i].value, depth+1)
		})
	case []any:
		r.list("[", "]", len(v), depth, func(i int) { r.value(v[i], depth+1) })
	case string:
		r.text(v)
	default:
		r.Write(mustMarshal(v))
	}
}

func (r *renderer) list(begin, end string, n, depth int, item func(i int)) {
	r.WriteString(begin)
	for i := range n {
		if i > 0 {
			r.WriteByte(',')
		}
		r.newLine(depth + 1)
		item(i)
		r.space()
	}
	if n > 0 {
		r.newLine(depth)
	}
	r.WriteString(end)
}

func (r *renderer) text(s string) {
	quoted := string(mustMarshal(s))
	if r.odd() {
		quoted = strings.ReplaceAll(quoted, "/", `\/`)
	}
	if r.format == Escaped && len(s) > 0 && s[0] < 0x80 && s[0] != '/' && !strings.HasPrefix(quoted, `"\`) {
		quoted = fmt.Sprintf(`"\u%04X%s`, s[0], quoted[2:])
	}
	r.WriteString(quoted)
}

// mustMarshal is for numbers, strings, and values that this package made.
func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("testimage: %v", err))
	}
	return b
}
