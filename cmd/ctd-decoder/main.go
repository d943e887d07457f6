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
// accepted if it were forged to fit the diff id in the image's unauthenticated
// config. Three things are done:
//
//   - Package layer holds back the end of the layer until its MAC was checked.
//   - Before anything else, ctd-decoder starts itself a second time, as a keeper
//     that holds standard output open, and nothing else. It lets go when the first
//     process has been reaped, and a moment more has passed; then containerd knows.
//     No byte leaves before the keeper said that it is there. It outlives whatever
//     may end the first process: an error, a panic, a signal, the kernel's lack of
//     memory. After a success it is killed first.
//   - Where there is no keeper, or it has waited too long, random bytes end the
//     output, so that it fits no diff id.
//
// Nothing is lost if the reader is not containerd: if standard output is not a
// pipe, there is no keeper.
//
// What remains is small: a first process that is killed within the first
// milliseconds of its life; and both processes killed at the same time. containerd
// then sees the beginning of a layer, at most all but the last megabyte, and no
// error. A node whose containerd applies layers with a diff service of its own
// does not depend on any of this.
package main

import (
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], processStdio()))
}
