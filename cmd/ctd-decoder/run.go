package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"imgcrypt/internal/oneline"
	"imgcrypt/internal/version"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
	"imgcrypt/streamproc"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNoKey       = 10
	exitTampered    = 11
	exitInterrupted = 130
)

// The variables that containerd sets. The first one is set for every processor, so
// it tells that the reader of standard output is containerd; its value, the layer's
// media type, is not needed.
const (
	mediaTypeEnv = "STREAM_PROCESSOR_MEDIATYPE"
	pipeEnv      = "STREAM_PROCESSOR_PIPE"
)

const (
	// payloadWait bounds the wait for the end of the payload. containerd writes it
	// at once; a pipe that never ends is somebody else's.
	payloadWait = 10 * time.Second
	// maxWarnings bounds the lines about unusable key files, because containerd
	// puts all of stderr into its error.
	maxWarnings = 10
)

// noPayloadHint says who has to send a payload. containerd passes on what its client
// sends; its CRI plugin is such a client, but hands its pulls to the transfer
// service where it can, which sends none.
const noPayloadHint = `unpack with ctr-enc and --key; for Kubernetes set use_local_image_pull = true ` +
	`(containerd 2) and key_model = "node" under image_decryption for containerd's CRI plugin; ` +
	`containerd's transfer service sends no payload`

var (
	errInterrupted = errors.New("stopped by a signal")
	errAbandoned   = errors.New("nobody reads standard output any more")
)

// stdio is all that run has to do with the world.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	// payload finds the stream of the payload.
	payload func() (io.ReadCloser, error)
	// keep starts what holds out open after a failure; see keeper.
	keep func() (keeper, error)
}

func processStdio() stdio {
	return stdio{
		in:      os.Stdin,
		out:     os.Stdout,
		err:     os.Stderr,
		payload: func() (io.ReadCloser, error) { return streamproc.Source(os.Getenv(pipeEnv)) },
		keep:    func() (keeper, error) { return keepOpen(os.Stdout, selfPath, os.Getenv(mediaTypeEnv) != "") },
	}
}

// run is the program. It returns the exit code.
func run(args []string, std stdio) int {
	opts, usage := parseArgs(args)
	switch {
	case opts.holdFor != 0:
		return hold(opts, std)
	case opts.help:
		fmt.Fprint(std.out, helpText)
		return exitOK
	case opts.version:
		fmt.Fprintln(std.out, "ctd-decoder", version.String())
		return exitOK
	}
	// The payload's descriptor is looked at before this process opens files.
	payload, noPayload := std.payload()
	keep, err := std.keep()
	switch {
	case err != nil:
	case usage != nil:
		err = usage
	case noPayload != nil:
		err = noPayload
	default:
		err = supervise(func(ctx context.Context) error { return decode(ctx, opts, payload, keep, std) })
	}
	if err == nil {
		keep.release()
		return exitOK
	}
	report(std.err, err)
	keep.fail()
	return exitCode(err)
}

// supervise does the work, and turns a panic or a signal into an error.
func supervise(work func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				done <- panicError(v)
			}
		}()
		done <- work(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// The work may sit in a read that nothing ends; the exit will.
		return errInterrupted
	}
}

// decode writes the plain bytes of the layer.
func decode(ctx context.Context, opts options, payload io.ReadCloser, keep keeper, std stdio) error {
	waitCtx, cancel := context.WithTimeout(ctx, payloadWait)
	defer cancel()
	p, err := streamproc.ReadPayload(waitCtx, payload)
	payload.Close()
	if err != nil {
		return err
	}
	options, err := schemes.FromEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	warned := 0
	d := streamproc.Decoder{
		Schemes: schemes.All(options),
		Warn: func(w error) {
			switch warned++; {
			case warned <= maxWarnings:
				fmt.Fprintf(std.err, "ctd-decoder: warning: %s\n", oneline.Of(w.Error()))
			case warned == maxWarnings+1:
				fmt.Fprintf(std.err, "ctd-decoder: warning: and more like these\n")
			}
		},
	}
	if opts.keysPath != "" {
		d.NodeKeys = func() ([]keys.Identity, []error) {
			parser := keys.Parser{Schemes: d.Schemes}
			return parser.Dir(opts.keysPath)
		}
	}
	plain, err := d.Open(ctx, p, std.in)
	if err != nil {
		return err
	}
	if _, err := io.Copy(&output{w: std.out, keep: keep}, plain); err != nil {
		return fmt.Errorf("layer %s: %w", p.Descriptor.Digest, err)
	}
	return nil
}

// output is standard output, whose first byte waits for the keeper.
type output struct {
	w     io.Writer
	keep  keeper
	begun bool
}

func (o *output) Write(p []byte) (int, error) {
	if !o.begun {
		if err := o.keep.begin(p); err != nil {
			return 0, err
		}
		o.begun = true
	}
	n, err := o.w.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = errAbandoned
	}
	return n, err
}

// report writes the error as one line. A reader that went away is told nothing.
func report(w io.Writer, err error) {
	if errors.Is(err, errAbandoned) {
		return
	}
	text := oneline.Of(err.Error())
	if errors.Is(err, streamproc.ErrNoPayload) {
		text += ": " + noPayloadHint
	}
	fmt.Fprintf(w, "ctd-decoder: error: %s\n", text)
}

func exitCode(err error) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, layer.ErrTampered):
		return exitTampered
	case errors.Is(err, keys.ErrNoKey):
		return exitNoKey
	}
	return exitFailure
}
