// Command testprovider is the key provider of package testprovider as a command.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys/provider"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	record := flag.String("record", "", "append requests to this `file`")
	fault := flag.String("fault", "", "fail in this `way`")
	seed := flag.String("seed", "", "`text` that tells vaults apart")
	name := flag.String("name", "", "the provider's `name`")
	flag.Parse()

	if testprovider.Fault(*fault) == testprovider.Hang {
		time.Sleep(time.Hour)
	}
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := testprovider.Record(*record, request); err != nil {
		return err
	}
	switch testprovider.Fault(*fault) {
	case testprovider.Flood:
		chunk := bytes.Repeat([]byte{' '}, 1<<20)
		for range 1 << 10 {
			if _, err := os.Stdout.Write(chunk); err != nil {
				return err
			}
		}
		return nil
	case testprovider.Fail:
		return fmt.Errorf("%s", testprovider.FailText)
	case testprovider.NoJSON:
		fmt.Println(testprovider.NoJSONText)
		return nil
	case testprovider.Crash:
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			return err
		}
		return self.Kill()
	case testprovider.Slow:
		time.Sleep(testprovider.SlowTime)
	}
	s := provider.Server{Provider: testprovider.Vault{Seed: *seed}, Name: *name}
	return s.Command(context.Background(), bytes.NewReader(request), os.Stdout)
}
