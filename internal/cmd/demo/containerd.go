package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// greeting is what the image prints.
const greeting = "Hello World!"

// machines is what the walkthrough runs on.
type machines struct {
	build, node *testnode.Node
	registry    *testregistry.Registry
}

// withContainerd is the walkthrough on real containerds.
func withContainerd(ctx context.Context, sh *shell) (err error) {
	sh.say("Building ctr-enc and ctd-decoder, and starting two containerds and a registry ...")
	m, err := start(ctx)
	defer func() {
		if left := m.stop(); left != nil {
			err = errors.Join(err, &leftError{left})
		}
	}()
	if err != nil {
		return err
	}
	programs, err := testenv.BuildCommand("./cmd/ctr-enc")
	if err != nil {
		return err
	}
	sh.env = append(sh.env, "PATH="+filepath.Dir(programs)+":"+os.Getenv("PATH"))
	w := &walk{shell: sh, machines: m, ref: m.registry.Ref("hello:encrypted")}
	if w.command, _, err = sh.buildImage(filepath.Join(sh.dir, "layout")); err != nil {
		return err
	}
	if err := testimage.ArchiveFile(filepath.Join(sh.dir, "hello.tar"), filepath.Join(sh.dir, "layout")); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{w.encrypt, w.refuse, w.open} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// start starts the machines. Those that run are returned also with an error.
func start(ctx context.Context) (m machines, err error) {
	decoder, err := testenv.BuildCommand("./cmd/ctd-decoder")
	if err != nil {
		return m, err
	}
	if m.registry, err = testregistry.New(nil); err != nil {
		return m, err
	}
	if m.build, err = testnode.Run(ctx, testnode.Config{DecoderPath: decoder}); err != nil {
		return m, err
	}
	m.node, err = testnode.Run(ctx, testnode.Config{DecoderPath: decoder})
	return m, err
}

func (m machines) stop() error {
	var errs []error
	for _, n := range []*testnode.Node{m.node, m.build} {
		if n != nil {
			errs = append(errs, n.Stop())
		}
	}
	if m.registry != nil {
		errs = append(errs, m.registry.Close())
	}
	return errors.Join(errs...)
}

// walk is the walkthrough.
type walk struct {
	*shell
	machines
	ref      string   // of the encrypted image
	command  []string // that the image runs
	original string   // digest of the plain image
	// noContainers says why there are none.
	noContainers error
}

func (w *walk) at(n *testnode.Node) {
	w.export("CONTAINERD_ADDRESS="+n.Address(), "CONTAINERD_NAMESPACE="+n.Namespace())
	w.env = append(w.env, n.Env()...)
}

var digestPattern = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// encrypt is what happens where images are built.
func (w *walk) encrypt(ctx context.Context) error {
	w.title("Where images are built")
	w.at(w.build)
	w.say("The key pair of the one who shall run the image:")
	if err := w.keyPair(ctx, "key.pem", "pub.pem"); err != nil {
		return err
	}
	w.say("An image that prints %s:", greeting)
	out, err := w.ok(ctx, "ctr-enc images import hello.tar")
	if err != nil {
		return err
	}
	w.original = digestPattern.FindString(out)
	w.say("Its layers are encrypted for the public key:")
	if _, err := w.ok(ctx, "ctr-enc images encrypt --recipient jwe:pub.pem "+plainName+" "+w.ref); err != nil {
		return err
	}
	out, err = w.ok(ctx, "ctr-enc images layerinfo "+w.ref)
	if err != nil {
		return err
	}
	w.say("Without the key nobody can read the gzip file that such a layer was:")
	layer := digestPattern.FindString(out)
	if err := w.refused(ctx, "ctr-enc content get "+layer+" | gzip --test", "not in gzip format"); err != nil {
		return err
	}
	_, err = w.ok(ctx, "ctr-enc images push "+w.ref)
	return err
}

// refuse is what happens on a node without the key.
func (w *walk) refuse(ctx context.Context) error {
	w.title("On a node that has nothing but the registry's address")
	w.at(w.node)
	w.say("Its containerd knows who decrypts layers:")
	config := filepath.Join(w.node.Dir(), "config.toml")
	if _, err := w.ok(ctx, "grep -A 3 '^.stream_processors' "+config); err != nil {
		return err
	}
	w.say("Without a key the image can be fetched, but not unpacked:")
	if err := w.refused(ctx, "ctr-enc images pull "+w.ref, "no key was given to open it"); err != nil {
		return err
	}
	const unauthorized = "you are not authorized to use this image"
	if err := w.refused(ctx, "ctr-enc run --rm "+w.ref+" hello", unauthorized); err != nil {
		return err
	}
	w.say("Nor does another key help:")
	if err := w.keyPair(ctx, "other.pem", "other.pub.pem"); err != nil {
		return err
	}
	return w.refused(ctx, "ctr-enc run --rm --key other.pem "+w.ref+" hello", unauthorized)
}

// open is what happens with the key.
func (w *walk) open(ctx context.Context) error {
	w.title("With the key")
	if err := w.start(ctx, "--key key.pem "+w.ref); err != nil {
		return err
	}
	w.say("Who has the key can decrypt the image for good. It is the original again:")
	const again = "example.test/hello:decrypted"
	out, err := w.ok(ctx, "ctr-enc images decrypt --key key.pem "+w.ref+" "+again)
	if err != nil {
		return err
	}
	if got := digestPattern.FindString(out); got != w.original || got == "" {
		return fmt.Errorf("the decrypted image has digest %s, the original had %s", got, w.original)
	}
	w.say("%s: the digest that was imported above.", w.original)
	w.say("A decrypted image needs no key:")
	return w.start(ctx, again)
}

// start runs the image, which args name at their end.
func (w *walk) start(ctx context.Context, args string) error {
	if w.noContainers != nil {
		return w.mounted(ctx, args)
	}
	out, err := w.greets(ctx, "ctr-enc run --rm "+args+" hello")
	if err != nil && ctx.Err() == nil && strings.Contains(out, "OCI runtime create failed") {
		w.noContainers = err
		w.warn("runc may not start containers here, so the image is mounted, and its program started from there")
		return w.mounted(ctx, args)
	}
	return err
}

// mounted is start without a container. The node unmounts what is mounted in its directory.
func (w *walk) mounted(ctx context.Context, args string) error {
	dir, err := os.MkdirTemp(w.node.Dir(), "mount-")
	if err != nil {
		return err
	}
	if _, err := w.ok(ctx, "ctr-enc images mount "+args+" "+dir); err != nil {
		return err
	}
	_, err = w.greets(ctx, dir+quote(w.command))
	return err
}

// greets runs a line that has to print the greeting and nothing else.
func (sh *shell) greets(ctx context.Context, line string) (string, error) {
	out, err := sh.ok(ctx, line)
	if err == nil && strings.TrimSpace(out) != greeting {
		err = fmt.Errorf("%q was to print %q", line, greeting)
	}
	return out, err
}
