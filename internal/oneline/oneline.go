// Package oneline makes texts fit for a line on a terminal or in a log.
package oneline

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Of returns text as one line: its lines joined by semicolons, and question marks for
// all that does not print. Errors that are joined have several lines, and what they
// quote was in part written by others, who may want to move a cursor.
func Of(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSpace(strings.Join(lines, "; ")))
}

// maxWord bounds what is shown of a name, in bytes.
const maxWord = 256

// Word returns a name as it is if it can stand in a list and in a table, and else quoted
// and cut: an empty one, a long one, or one with blanks, commas or what does not print.
// Anyone may have written it.
func Word(name string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == ',' }
	if name == "" || len(name) > maxWord || strings.ContainsFunc(name, odd) {
		return strconv.QuoteToGraphic(fmt.Sprintf("%.256s", name))
	}
	return name
}
