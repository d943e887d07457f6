package version

import (
	"runtime/debug"
	"testing"
)

func TestFromBuildInfo(t *testing.T) {
	t.Parallel()
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123abcd"}
	for _, tt := range []struct {
		name string
		info debug.BuildInfo
		want string
	}{
		{"module version", debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3"},
		{"development", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "unknown"},
		{"nothing", debug.BuildInfo{}, "unknown"},
		{"revision", debug.BuildInfo{Settings: []debug.BuildSetting{revision, {Key: "vcs.modified", Value: "false"}}}, "0123abcd"},
		{"dirty", debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.modified", Value: "true"}, revision}}, "0123abcd+dirty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := fromBuildInfo(&tt.info); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStringIsNeverEmpty(t *testing.T) {
	t.Parallel()
	if String() == "" {
		t.Error("empty version")
	}
}
