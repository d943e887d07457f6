package layer_test

import (
	"strings"
	"testing"

	"imgcrypt/layer"
)

func TestMarks(t *testing.T) {
	t.Parallel()
	secret, other := layer.Secret{Key: [32]byte{1}}, layer.Secret{Key: [32]byte{2}}
	packet := layer.Packet{Scheme: "provider.kms", Data: []byte("packet")}
	mark := secret.Mark(packet, "alice")
	for name, different := range map[string]layer.Mark{
		"another layer":     other.Mark(packet, "alice"),
		"another recipient": secret.Mark(packet, "bob"),
		"another packet":    secret.Mark(layer.Packet{Scheme: packet.Scheme, Data: []byte("other")}, "alice"),
		"another scheme":    secret.Mark(layer.Packet{Scheme: "provider.kmsa", Data: packet.Data}, "lice"),
	} {
		if different == mark {
			t.Errorf("%s has the same mark", name)
		}
	}
	marks := layer.Marks{mark, other.Mark(packet, "alice")}
	read := layer.ParseMarks("?," + marks.String() + ",AAAA,")
	if len(read) != 2 || !read.Contains(mark) || read.Contains(secret.Mark(packet, "bob")) {
		t.Errorf("%q was read as %q", marks, read)
	}
	if n := len(layer.ParseMarks("")); n != 0 {
		t.Errorf("%d marks in nothing", n)
	}
	if n := len(layer.ParseMarks(strings.Repeat(marks.String()+",", layer.MaxPackets))); n != layer.MaxPackets {
		t.Errorf("%d marks, want at most %d", n, layer.MaxPackets)
	}
}
