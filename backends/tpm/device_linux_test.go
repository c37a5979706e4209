package tpm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// characterDevice is a pseudo-terminal with a TPM at its other end: it is
// opened, written and read as /dev/tpmrm0 is, whose driver this machine need
// not have.
func characterDevice(t *testing.T, r *relay) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &unix.Termios{Cflag: unix.CS8 | unix.CREAD, Cc: [19]uint8{unix.VMIN: 1}}); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	// While none has it open, reads at the other end fail.
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { r.serve(master) })
	t.Cleanup(func() {
		keep.Close()
		serving.Wait()
	})
	return path
}

// An anchor behind a character device. A command that hangs is given up when
// the context ends, and until it has ended no other is sent.
func TestCharacterDevice(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	c := testConfig(characterDevice(t, r), 1)
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	wantState(t, mustOpen(t, c), testState(1))

	ctx, cancel := context.WithCancel(t.Context())
	resume := make(chan struct{})
	hung := false
	r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
		if code == tpm2.TPMCCNVWrite && !hung {
			hung = true
			cancel()
			<-resume
		}
		return forward()
	})
	wantErr(t, "write", a.Write(ctx, testState(2)), context.Canceled)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := a.Write(ctx, testState(3))
	wantErr(t, "write behind it", err, context.DeadlineExceeded)
	if !strings.Contains(err.Error(), "operation before") {
		t.Errorf("write behind it: %v", err)
	}
	close(resume)
	// Waits for the command that was given up: it was run, state 3 was not.
	wantState(t, a, testState(2))
	mustWrite(t, a, testState(4))
	wantState(t, a, testState(4))
}
