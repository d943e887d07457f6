package oneline_test

import (
	"strings"
	"testing"

	"imgcrypt/internal/oneline"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                   "",
		"\n":                                 "",
		"a line":                             "a line",
		"one\ntwo\r\n\nthree\n":              "one; two; three",
		"\x1b[2J\x1b]0;title\a\x00\u009b31m": "?[2J?]0;title???31m",
		"a\tb\u202egnp.exe\u2028c\xffd":      "a?b?gnp.exe?c\ufffdd",
		"Schlüssel – 鍵":                      "Schlüssel – 鍵",
	} {
		if got := oneline.Of(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestWord(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"":                       `""`,
		"alice@example.com":      "alice@example.com",
		"Schlüssel":              "Schlüssel",
		"two words":              `"two words"`,
		"a,b":                    `"a,b"`,
		"\x1b[2J\n":              `"\x1b[2J\n"`,
		strings.Repeat("a", 300): `"` + strings.Repeat("a", 256) + `"`,
	} {
		if got := oneline.Word(name); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}
