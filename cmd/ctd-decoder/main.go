// Command ctd-decoder is the stream processor that containerd starts for every
// encrypted layer that it unpacks: ciphertext on standard input, the plain bytes on
// standard output, the layer's descriptor and perhaps keys in the payload.
//
// # What containerd misses, and what is done about it
//
// containerd (1.6 to 2.4) asks whether its processor has failed when the
// processor's standard output ends, and does not wait for the exit status. A
// process that fails closes its output before its parent can have learned its exit
// status, so that most failures would go unnoticed, and a forged layer would be
// accepted if the image's unauthenticated config has the diff id of what came out
// of it, be it nothing. Three things are done:
//
//   - Package layer holds back the end of the layer until its MAC was checked.
//   - Before anything else, ctd-decoder starts itself a second time, as a keeper
//     that holds standard output open. It lets go when the first process has been
//     reaped, and a moment more has passed; then containerd knows. No byte leaves
//     before the keeper said that it is there. It outlives whatever may end the
//     first process: an error, a panic, a signal, the kernel's lack of memory.
//     After a success it is killed first.
//   - How long containerd needs to know what its wait has returned depends on how
//     busy the machine is, and cannot be seen from outside. So the keeper ends a
//     failed output with random bytes: where containerd is slow, the digest of
//     the whole is no diff id that anyone could have foreseen. The bytes are in
//     the format of what came before them, so that containerd, where it is not
//     slow, gets to show the failure's own text. This is done only for containerd
//     (which sets STREAM_PROCESSOR_MEDIATYPE); other readers know how to wait.
//
// If standard output is not a pipe, there is no keeper.
//
// What remains is small: a first process that is killed within the first
// milliseconds of its life, when nothing has left; and both processes killed at the
// same time. containerd then sees nothing, or the beginning of a layer without its
// last megabyte, and perhaps no error. A layer of more than that megabyte whose MAC
// is wrong is refused, but if it breaks off in the middle of a compressed stream,
// containerd says so ("unexpected EOF") instead of showing this program's error. A
// node whose containerd applies layers with a diff service of its own does not
// depend on any of this.
package main

import (
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], processStdio()))
}
