// Package cliselect is what commands have in common that work on some layers of an
// image: their flags --platform and --layer, and what these choose.
package cliselect

import (
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
)

// Flags choose layers.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.IntSliceFlag{Name: "layer", Usage: "Number `N` of a layer, from 0 or, negative, from the top (repeatable; default: all layers)"},
		PlatformFlag(),
	}
}

// PlatformFlag chooses manifests.
func PlatformFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "platform", Usage: "Platform of the layers (repeatable; default: all platforms)"}
}

// Selection returns what the flags of cmd choose of img. A flag that chooses nothing is an
// error that wraps imgcrypt.ErrNothingSelected.
func Selection(cmd *cli.Command, img imgcrypt.Image) (chosen imgcrypt.Selection, err error) {
	var wanted []platforms.Matcher
	for _, text := range cmd.StringSlice("platform") {
		p, err := platforms.Parse(text)
		if err != nil {
			return chosen, err
		}
		matcher := platforms.NewMatcher(p)
		if !slices.ContainsFunc(img.Manifests, func(m imgcrypt.Manifest) bool { return m.Platform != nil && matcher.Match(*m.Platform) }) {
			return chosen, fmt.Errorf("--platform %s: %w", text, imgcrypt.ErrNothingSelected)
		}
		wanted = append(wanted, matcher)
		chosen.Platform = func(p *ocispec.Platform) bool {
			return p != nil && slices.ContainsFunc(wanted, func(w platforms.Matcher) bool { return w.Match(*p) })
		}
	}
	numbers := cmd.IntSlice("layer")
	for _, n := range numbers {
		if !slices.ContainsFunc(img.Manifests, func(m imgcrypt.Manifest) bool {
			return (chosen.Platform == nil || chosen.Platform(m.Platform)) && -len(m.Layers) <= n && n < len(m.Layers)
		}) {
			return chosen, fmt.Errorf("--layer %d: %w", n, imgcrypt.ErrNothingSelected)
		}
		chosen.Layer = func(l imgcrypt.Layer) bool {
			return slices.Contains(numbers, l.Index) || slices.Contains(numbers, l.Index-l.Count)
		}
	}
	return chosen, nil
}
