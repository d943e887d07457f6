// Package oneline makes texts fit for a line on a terminal or in a log.
package oneline

import (
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
