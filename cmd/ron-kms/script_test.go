package main

import (
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ron-kms": main})
}

// The command line at its edges, as scripts that people can read.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			// A store that opens fast, and processes that end at once under the
			// race detector.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Setenv("KMS_ARENA_SIZE", "1048576")
			return os.WriteFile(e.WorkDir+"/passphrase", []byte("correct horse\n"), 0o600)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"waitfor": waitFor,
			"replace": replaceByte,
		},
	})
}

// waitFor waits until a file exists: "waitfor kms.sock".
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 600 {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s did not appear", args[0])
}

// replaceByte flips the lowest bit of a file's first byte that is not zero,
// after an offset of 5000 bytes: "replace store/audit/data-00000000".
func replaceByte(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	b, err := os.ReadFile(name)
	ts.Check(err)
	for i := 5000; i < len(b); i++ {
		if b[i] != 0 {
			b[i] ^= 1
			ts.Check(os.WriteFile(name, b, 0o600))
			return
		}
	}
	ts.Fatalf("%s has nothing to change", args[0])
}
