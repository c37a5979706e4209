package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"golang.org/x/mod/sumdb/note"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Each way a disk fails stops the log at once and for good; nothing is acknowledged that a later Open does not
// find..
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, op, file string
		pass           int // bytes of a write that go through
		err            error
	}{
		{"EIO on write", "write", "seg-", 0, syscall.EIO},
		{"EIO on sync", "sync", "seg-", 0, syscall.EIO},
		{"ENOSPC on write", "write", "seg-", 0, syscall.ENOSPC},
		{"short write", "write", "seg-", 100, nil},
		{"short write with error", "write", "seg-", 513, syscall.ENOSPC},
		{"EIO on head", "write", headFile, 0, syscall.EIO},
		{"torn head", "write", headFile, 200, syscall.EIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			told := make(chan error, 10)
			o.OnFailure = func(err error) { told <- err }
			d, l := newSimLog(t, o)
			grow(t, l, 5)
			var acked uint64
			d.Mu.Lock()
			left, broken := 3, false
			d.Fail = func(op, name string, n int) (int, error) {
				if op != tt.op || !strings.HasPrefix(name, tt.file) || broken {
					return n, nil
				}
				if left--; left > 0 {
					return n, nil
				}
				broken = true // once: later operations would succeed, if the log tried them
				return tt.pass, tt.err
			}
			d.Mu.Unlock()
			var err error
			for i := 0; err == nil && i < 10; i++ {
				r := operation("k", i)
				r.Detail = make([]byte, 900)
				var got []Receipt
				if got, err = l.Append(context.Background(), r); err == nil {
					acked = got[0].Index + 1
				}
			}
			if !errors.Is(err, ErrFailed) || tt.err != nil && !errors.Is(err, tt.err) {
				t.Fatalf("append: %v", err)
			}
			if acked == 0 {
				t.Fatal("the fault came before any acknowledgement")
			}
			if err := <-told; !errors.Is(err, ErrFailed) {
				t.Errorf("OnFailure: %v", err)
			}
			for range 3 {
				if _, err := l.Append(context.Background(), operation("k", 1)); !errors.Is(err, ErrFailed) {
					t.Errorf("later append: %v", err)
				}
			}
			if !errors.Is(l.Err(), ErrFailed) {
				t.Errorf("Err: %v", l.Err())
			}
			l.Offer(operation("k", 1))
			if l.Lost() != 1 {
				t.Errorf("lost %d", l.Lost())
			}
			if err := l.Close(); !errors.Is(err, ErrFailed) {
				t.Errorf("close: %v", err)
			}
			if len(told) != 0 {
				t.Error("OnFailure was called again")
			}
			rng := rand.New(rand.NewPCG(7, 8))
			d.Fail = nil
			for _, c := range []*fsystest.Disk{d.Killed(), d.PowerCut(rng), d.PowerCut(rng), d.PowerCut(rng)} {
				l, err := tryOpenSim(c, o)
				if err != nil {
					t.Fatalf("reopen: %v", err)
				}
				if l.Size() < acked {
					t.Errorf("%d records, %d acknowledged", l.Size(), acked)
				}
				mustClose(t, l)
			}
		})
	}
}

// Those who wait behind the write that fails get the failure too, and nothing of theirs is written. R-016.
func TestFaultReachesTheQueue(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, testOptions(t))
	held, hold := make(chan struct{}), make(chan struct{})
	writes := 0
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if !strings.HasPrefix(name, "seg-") {
			return n, nil
		}
		if op == "write" {
			writes++
			return n, nil
		}
		close(held)
		d.Mu.Unlock()
		<-hold
		d.Mu.Lock()
		return 0, syscall.EIO
	}
	d.Mu.Unlock()
	errs := make(chan error, 9)
	put := func() { _, err := l.Append(context.Background(), operation("k", 1)); errs <- err }
	go put()
	<-held
	for range 8 {
		go put()
	}
	for waiting := 0; waiting < 8; runtime.Gosched() {
		l.mu.Lock()
		waiting = l.cur.waiters
		l.mu.Unlock()
	}
	close(hold)
	for range 9 {
		if err := <-errs; !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("append: %v", err)
		}
	}
	l.Close()
	if writes != 1 {
		t.Errorf("%d writes", writes)
	}
}

// A checkpoint that cannot be written or signed stops the log too: the unsigned tail must not grow unnoticed.
func TestCheckpointFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ op, file string }{
		{"write", checkpointsName(0)}, {"sync", checkpointsName(0)}, {"write", checkpointFile + fsys.TmpSuffix}, {"rename", checkpointFile + fsys.TmpSuffix},
		{"syncdir", ""}, {"sync", headFile}, {"sign", ""},
	} {
		t.Run(tt.op+" "+tt.file, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			signer := &failingSigner{Signer: o.Signers[0]}
			o.Signers = []note.Signer{signer}
			o.CheckpointRecords = 3
			d, l := newSimLog(t, o)
			d.Mu.Lock()
			signer.broken.Store(tt.op == "sign")
			d.Fail = func(op, name string, n int) (int, error) {
				if op == tt.op && name == tt.file {
					return 0, errInjected
				}
				return n, nil
			}
			d.Mu.Unlock()
			for range 3 {
				mustAppend(t, l, operation("k", 1))
			}
			<-l.failed
			if _, err := l.Append(context.Background(), operation("k", 1)); !errors.Is(err, ErrFailed) || !errors.Is(err, errInjected) {
				t.Errorf("append: %v", err)
			}
			size := l.Size()
			l.Close()
			d.Fail = nil
			signer.broken.Store(false)
			for _, c := range []*fsystest.Disk{d.Killed(), d.PowerCut(rand.New(rand.NewPCG(1, 1)))} {
				l := openSim(t, c, o)
				if l.Size() < size {
					t.Errorf("%d records of %d", l.Size(), size)
				}
				mustClose(t, l)
			}
		})
	}
}

// While the disk is full, the log takes records until the ring is full too, then refuses them; and goes on by itself when there
// is space. Nothing that was acknowledged is lost, whenever the process dies. R-274.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"everything", "segments", "tiles", "snapshots", "checkpoints"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			o.RingSegments, o.CheckpointRecords = minSegments, 50
			d, l := newSimLog(t, o)
			var full atomic.Bool
			full.Store(true)
			match := map[string]func(name string) bool{
				"everything": func(name string) bool {
					return !strings.HasPrefix(name, "seg-") || strings.HasSuffix(name, fsys.TmpSuffix)
				},
				"segments": func(name string) bool {
					return strings.HasPrefix(name, "seg-") && strings.HasSuffix(name, fsys.TmpSuffix)
				},
				"tiles":       func(name string) bool { return strings.HasPrefix(name, "level-") || strings.HasPrefix(name, "data-") },
				"snapshots":   func(name string) bool { return strings.HasPrefix(name, snapshotFile) },
				"checkpoints": func(name string) bool { return strings.HasPrefix(name, "checkpoint") },
			}[what]
			d.Mu.Lock()
			d.Fail = func(op, name string, n int) (int, error) {
				if full.Load() && op == "write" && name != headFile && match(name) {
					return n / 2, syscall.ENOSPC
				}
				return n, nil
			}
			d.Mu.Unlock()
			acked := uint64(0)
			add := func() error {
				got, err := l.Append(context.Background(), operation("k", 1))
				if err == nil {
					acked = got[0].Index + 1
				}
				return err
			}
			for err := error(nil); err == nil && acked < 2000; {
				if err = add(); err != nil && !errors.Is(err, ErrFull) {
					t.Fatalf("after %d records: %v", acked, err)
				}
			}
			refused := acked < 2000
			if what != "checkpoints" && what != "segments" && !refused {
				t.Error("a ring without end")
			}
			if refused && !errors.Is(l.Full(), syscall.ENOSPC) {
				t.Errorf("full: %v", l.Full())
			}
			if l.Err() != nil {
				t.Fatalf("failed: %v", l.Err())
			}
			for _, c := range []*fsystest.Disk{d.Killed(), d.PowerCut(rand.New(rand.NewPCG(1, 1)))} {
				l := openSim(t, c, o)
				if l.Size() < acked {
					t.Errorf("%d records of %d", l.Size(), acked)
				}
				mustClose(t, l)
			}
			full.Store(false)
			for n := 0; n < 3000; {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				_, err := l.Append(ctx, operation("k", 1))
				cancel()
				if err == nil {
					n++
				} else if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				} else {
					l.wake()
				}
			}
			mustClose(t, l)
			if rep, err := verifySim(d, o.Keys, true); err != nil || !rep.Clean {
				t.Errorf("after the space returned: %+v, %v", rep, err)
			}
		})
	}
}

// A log in a process of its own is killed again and again; it never loses what it acknowledged and never cries wolf. R-016.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	o := testOptions(t)
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 9))
	var acked uint64
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		for n := 50 + rng.IntN(200); n > 0 && sc.Scan(); n-- {
			var i uint64
			fmt.Sscan(strings.TrimSuffix(sc.Text(), "."), &i)
			acked = max(acked, i+1)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for sc.Scan() {
			var i uint64
			text, whole := strings.CutSuffix(sc.Text(), ".")
			if n, _ := fmt.Sscan(text, &i); n == 1 && whole {
				acked = max(acked, i+1)
			}
		}
		cmd.Wait()
		rep, err := Verify(context.Background(), dir, VerifyOptions{Keys: o.Keys, MACKey: testMAC})
		if err != nil || rep.Size < acked || rep.Clean {
			t.Fatalf("round %d: %d records of %d acknowledged, clean %v: %v", round, rep.Size, acked, rep.Clean, err)
		}
	}
	if acked < 200 {
		t.Errorf("only %d records", acked)
	}
	l, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// killEnv makes the test program a writer of the log it names.
const killEnv = "RONKMS_TEST_AUDIT_KILL"

// killedChild appends, and prints the index of each record that was acknowledged, until it is killed.
func killedChild() {
	tb := new(testing.B)
	o := testOptions(tb)
	o.CheckpointRecords = 30
	l, err := Open(context.Background(), os.Getenv(killEnv), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for w := range 3 {
		go func() {
			for i := 0; ; i++ {
				got, err := l.Append(context.Background(), operation(fmt.Sprint("k", w), i))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Println(fmt.Sprint(got[0].Index) + ".")
			}
		}()
	}
	select {}
}
