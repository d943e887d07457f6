package testnode

import (
	"fmt"
	"strconv"
	"strings"
)

// processorIDs are the stream processors of encrypted layers by the suffix of the media type that they
// return. Containerd's own defaults name the first two.
var processorIDs = []struct{ id, suffix string }{
	{"io.containerd.ocicrypt.decoder.v1.tar", ""},
	{"io.containerd.ocicrypt.decoder.v1.tar.gzip", "+gzip"},
	{"io.containerd.ocicrypt.decoder.v1.tar.zstd", "+zstd"},
}

const (
	layerType            = "application/vnd.oci.image.layer.v1.tar"
	nonDistributableType = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// toml renders containerd's configuration.
//
// What it takes to be independent of the machine: no imports (2.4's default reads /etc/containerd/conf.d),
// no CRI (which would look for CNI and pull its sandbox image), no NRI (a socket in /var/run/nri), the opt
// service's directory in the node's own (the default creates /opt/containerd). An http registry on
// 127.0.0.1 needs nothing: for a loopback host with a port, both the transfer service and the clients
// use plain http.
func (n *Node) toml() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	q := strconv.Quote

	if n.cfg.Version == V16 {
		p("version = 2")
	} else {
		p("version = 4")
	}
	p("root = %s", q(n.rootDir()))
	p("state = %s", q(n.path("state")))
	p("imports = []")
	p("disabled_plugins = %s", tomlList(disabledPlugins[n.cfg.Version]))
	if n.cfg.Version == V16 {
		p("[grpc]\naddress = %s", q(n.Address()))
		p("[ttrpc]\naddress = %s", q(n.path("t.sock")))
	} else {
		p("[plugins.%s]\naddress = %s", q("io.containerd.server.v1.grpc"), q(n.Address()))
		p("[plugins.%s]\naddress = %s", q("io.containerd.server.v1.ttrpc"), q(n.path("t.sock")))
		// The transfer service unpacks for the snapshotters that are listed, by default for overlayfs alone.
		p("[[plugins.%s.unpack_config]]\nplatform = %s\nsnapshotter = %s\ndiffer = \"walking\"",
			q("io.containerd.transfer.v1.local"), q(hostPlatform()), q(n.snapshotter))
	}
	p("[plugins.%s]\npath = %s", q("io.containerd.internal.v1.opt"), q(n.path("opt")))
	n.tomlProcessors(p)
	b.WriteString(n.cfg.ExtraTOML)
	return b.String()
}

var disabledPlugins = map[Version][]string{
	V16: {"io.containerd.grpc.v1.cri"},
	V2: {
		"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
		"io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
	},
}

// tomlProcessors configures the decoder for all three compressions. A node without processors says
// so for each: both containerds have defaults for two of them that would start a ctd-decoder on PATH.
func (n *Node) tomlProcessors(p func(string, ...any)) {
	for _, s := range processorIDs {
		p("[stream_processors.%s]", strconv.Quote(s.id))
		p("returns = %s", strconv.Quote(layerType+s.suffix))
		if n.cfg.WithoutProcessors || n.cfg.DecoderPath == "" {
			p("accepts = []")
			continue
		}
		p("accepts = [%q, %q]", layerType+s.suffix+"+encrypted", nonDistributableType+s.suffix+"+encrypted")
		p("path = %s", strconv.Quote(n.cfg.DecoderPath))
		if n.cfg.KeysDir != "" {
			p("args = %s", tomlList([]string{"--decryption-keys-path", n.cfg.KeysDir}))
		}
		if len(n.cfg.DecoderEnv) > 0 {
			p("env = %s", tomlList(n.cfg.DecoderEnv))
		}
	}
}

func tomlList(items []string) string {
	quoted := make([]string, len(items))
	for i, s := range items {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
