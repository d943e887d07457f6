package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/internal/cliselect"
	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "Show how an image is encrypted, and for whom", ArgsUsage: "IMAGE",
		Description: `List the manifests and layers of an image, with how they are encrypted and who can
open them, as far as the image tells. With keys, also which layers these open. No
layer is read.`,
		Flags:  flags(slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "n", Usage: "Show pgp recipients by key id, not by address"}, cliselect.PlatformFlag()}, keyFlags())...),
		Action: action(1, 1, inspect),
	}
}

// manifestInfo and layerInfo are what inspect prints as JSON.
type manifestInfo struct {
	Digest      digest.Digest `json:"digest"`
	Platform    string        `json:"platform,omitempty"`
	Attestation bool          `json:"attestation,omitempty"`
	Missing     bool          `json:"missing,omitempty"`
	Layers      []layerInfo   `json:"layers"`
}

type layerInfo struct {
	Index      int                 `json:"index"`
	Digest     digest.Digest       `json:"digest"`
	MediaType  string              `json:"mediaType"`
	Size       int64               `json:"size"`
	Encrypted  bool                `json:"encrypted"`
	Recipients []map[string]string `json:"recipients,omitempty"`
	// Opens says whether the given keys open it; absent without keys.
	Opens *bool `json:"opens,omitempty"`
}

func inspect(ctx context.Context, j *job) error {
	if err := j.readKeys(ctx, false); err != nil {
		return err
	}
	p, img, chosen, err := j.image(ctx, false)
	if err != nil {
		return err
	}
	opens := func(l imgcrypt.LayerInfo) (*bool, error) {
		if j.given == 0 || !l.Encrypted {
			return nil, nil
		}
		_, err := keys.Open(ctx, j.identities, l.Annotations)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		ok := err == nil
		return &ok, nil
	}
	list := []manifestInfo{}
	for _, m := range img.Manifests {
		if chosen.Platform != nil && !chosen.Platform(m.Platform) {
			continue
		}
		info := manifestInfo{Digest: m.Desc.Digest, Platform: platformName(m.Platform), Attestation: m.Attestation, Missing: m.Missing, Layers: []layerInfo{}}
		for _, l := range m.Layers {
			li := layerInfo{Index: l.Index, Digest: l.Digest, MediaType: l.MediaType, Size: l.Size, Encrypted: l.Encrypted}
			for _, r := range l.Recipients {
				li.Recipients = append(li.Recipients, map[string]string{"scheme": r.Scheme, "name": r.Name})
			}
			if li.Opens, err = opens(l); err != nil {
				return err
			}
			info.Layers = append(info.Layers, li)
		}
		list = append(list, info)
	}
	if j.cmd.Bool("json") {
		return j.print(map[string]any{"name": p.name(img.Desc), "digest": img.Desc.Digest, "mediaType": img.Desc.MediaType, "manifests": list})
	}
	return j.table(p.name(img.Desc), list)
}

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return ""
	}
	return oneline.Of(platforms.Format(*p))
}

// table prints a manifest's line, and a table of its layers.
func (j *job) table(image string, list []manifestInfo) error {
	out := j.cmd.Root().Writer
	fmt.Fprintln(out, image)
	for _, m := range list {
		what := m.Platform
		switch {
		case m.Attestation:
			what = "attestation"
		case what == "":
			what = "platform unknown"
		}
		if m.Missing {
			what += ", not here"
		}
		fmt.Fprintf(out, "\nmanifest %s (%s)\n", m.Digest, what)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, l := range m.Layers {
			fmt.Fprintf(w, "  %d\t%s\t%d\t%s\t%s\n", l.Index, l.Digest, l.Size, oneline.Of(l.MediaType), strings.Join(l.says(), ", "))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// says is what the table has about a layer's encryption.
func (l layerInfo) says() []string {
	if !l.Encrypted {
		return []string{"not encrypted"}
	}
	var texts []string
	for _, r := range l.Recipients {
		text := r["name"]
		if !strings.HasPrefix(text, "[") {
			text = r["scheme"] + " " + text
		}
		texts = append(texts, oneline.Of(text))
	}
	if l.Opens != nil {
		texts = append(texts, map[bool]string{true: "opens", false: "does not open"}[*l.Opens])
	}
	return texts
}

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "Read all of an image and check it", ArgsUsage: "[-k KEY…] IMAGE",
		Description: `Read all manifests, configs and layers of an image, and check every digest, the MAC
of each encrypted layer, and the diff id of each layer. What is not encrypted is
said. The exit code is 0 only if all of it holds.`,
		Flags: flags(slices.Concat([]cli.Flag{
			&cli.BoolFlag{Name: "require-encrypted", Usage: "Fail on a layer that is not encrypted"}, cliselect.PlatformFlag(),
		}, keyFlags())...),
		Action: action(1, 1, verify),
	}
}

func verify(ctx context.Context, j *job) error {
	if err := j.readKeys(ctx, false); err != nil {
		return err
	}
	p, img, chosen, err := j.image(ctx, false)
	if err != nil {
		return err
	}
	got, err := imgcrypt.Verify(ctx, p, img.Desc, imgcrypt.VerifyOptions{
		Identities: j.identities, Platform: chosen.Platform, RequireEncrypted: j.cmd.Bool("require-encrypted"),
		Jobs: j.cmd.Int("jobs"), Notify: j.notify,
	})
	if j.cmd.Bool("json") {
		found := []string{}
		for _, one := range split(err) {
			found = append(found, one.Error())
		}
		return errors.Join(j.print(map[string]any{
			"name": p.name(img.Desc), "digest": img.Desc.Digest, "manifests": got.Manifests, "layers": got.Layers, "encrypted": got.Encrypted, "errors": found,
		}), err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(j.cmd.Root().Writer, "%s: all right: %s, %s, of them %d encrypted\n",
		p.name(img.Desc), count(got.Manifests, "manifest"), count(got.Layers, "layer"), got.Encrypted)
	return err
}

// count returns a number with what is counted.
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// split returns the errors that err joins.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
