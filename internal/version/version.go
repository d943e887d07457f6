// Package version knows which version of the module a program was built from.
package version

import "runtime/debug"

// Version is set by the linker: -ldflags "-X imgcrypt/internal/version.Version=v1.2.3".
// Programs ask [String] instead, and nothing writes it at run time.
var Version string

// String returns the version that the linker set. Without one it is what the Go
// command recorded: the module's version, else the revision with "+dirty" where
// the tree had changes, else "unknown".
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return fromBuildInfo(info)
}

func fromBuildInfo(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if revision == "" {
		return "unknown"
	}
	return revision + dirty
}
