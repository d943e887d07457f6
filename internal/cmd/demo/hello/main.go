// Command hello is what the demo's image runs where there is no busybox.
package main

import "os"

func main() {
	if _, err := os.Stdout.WriteString("Hello World!\n"); err != nil {
		os.Exit(1)
	}
}
