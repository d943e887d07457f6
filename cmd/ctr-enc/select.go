package main

import (
	"fmt"
	"strconv"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
)

// selectFlags are the flags that choose layers.
func selectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntSliceFlag{
			Name:  "layer",
			Usage: "Number `N` of a layer, from 0 or, negative, from the top; may be given several times (default: all layers)",
		},
		&cli.StringSliceFlag{
			Name:  "platform",
			Usage: "Platform of the layers; may be given several times (default: all platforms)",
		},
	}
}

// choice is one --platform or --layer.
type choice[T any] struct {
	flag string
	fits func(T) bool
	used bool
}

// choices are all of one kind.
type choices[T any] []choice[T]

// pick returns what imgcrypt asks whether something is chosen: nil if everything is.
func (c choices[T]) pick() func(T) bool {
	if len(c) == 0 {
		return nil
	}
	return func(v T) bool {
		found := false
		for i := range c {
			if c[i].fits(v) {
				c[i].used, found = true, true
			}
		}
		return found
	}
}

// check fails if one of them fitted nothing.
func (c choices[T]) check() error {
	for _, one := range c {
		if !one.used {
			return fmt.Errorf("%s: %w", one.flag, imgcrypt.ErrNothingSelected)
		}
	}
	return nil
}

func layerChoices(cmd *cli.Command) choices[imgcrypt.Layer] {
	var c choices[imgcrypt.Layer]
	for _, n := range cmd.IntSlice("layer") {
		c = append(c, choice[imgcrypt.Layer]{
			flag: "--layer " + strconv.Itoa(n),
			fits: func(l imgcrypt.Layer) bool { return n == l.Index || n == l.Index-l.Count },
		})
	}
	return c
}

func platformChoices(cmd *cli.Command) (choices[*ocispec.Platform], error) {
	var c choices[*ocispec.Platform]
	for _, text := range cmd.StringSlice("platform") {
		parsed, err := platforms.Parse(text)
		if err != nil {
			return nil, err
		}
		matcher := platforms.NewMatcher(parsed)
		c = append(c, choice[*ocispec.Platform]{
			flag: "--platform " + text,
			fits: func(p *ocispec.Platform) bool { return p != nil && matcher.Match(*p) },
		})
	}
	return c, nil
}
