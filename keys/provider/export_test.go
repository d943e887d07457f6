package provider

import "time"

// For tests that are given what others may write.

// ParseAnswer returns what an answer to a question of this kind holds.
func ParseAnswer(op string, data []byte) ([]byte, error) { return question{op: op}.parse(data) }

// Frame, Unframe and Gist are what they are called.
func Frame(field []byte) []byte                 { return frame(field) }
func Unframe(data []byte) ([]byte, error)       { return unframe(data) }
func Gist(text string, hidden ...[]byte) string { return gist(text, hidden) }
func Escape(s string) string                    { return escape(s) }
func Unescape(s string) string                  { return unescape(s) }

// ParseTarget returns what is dialled, and how the service is called.
func ParseTarget(s string) (network, address, authority string, err error) {
	t, err := parseTarget(s)
	return t.network, t.address, t.authority, err
}

// FormatTimeout and ParseTimeout are what they are called.
func FormatTimeout(d time.Duration) string             { return formatTimeout(d) }
func ParseTimeout(s string) (d time.Duration, ok bool) { return parseTimeout(s) }
