package main

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// panicError says where a panic came from. A Go stack trace would print arguments,
// and a panic's value may be anything, so neither is shown: either may hold a key.
// The runtime's own errors (an index out of range, …) hold numbers and types only.
func panicError(v any) error {
	what := fmt.Sprintf("%T", v)
	if err, ok := v.(runtime.Error); ok {
		what = err.Error()
	}
	return fmt.Errorf("internal error: %s at %s", what, panicSite())
}

// panicSite is the innermost function of this module that was running.
func panicSite() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	inPanic := false
	for {
		f, more := frames.Next()
		ours := strings.HasPrefix(f.Function, "imgcrypt/") || strings.HasPrefix(f.Function, "main.")
		if inPanic && ours {
			return fmt.Sprintf("%s:%d", path.Base(f.File), f.Line)
		}
		inPanic = inPanic || f.Function == "runtime.gopanic"
		if !more {
			return "an unknown place"
		}
	}
}
