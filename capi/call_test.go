package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

func quiet() *logSink {
	s, err := newLogSink(-1)
	if err != nil {
		panic(err)
	}
	return s
}

// A panic becomes Internal, and from then on no private key of that store is
// used or changed; verify and reads go on.
func TestPanicPoisons(t *testing.T) {
	t.Parallel()
	inst := &instance{log: quiet()}
	c := &call{op: "sign", inst: inst}
	if err := c.run(func(*call) error { return nil }); err != nil || inst.poisoned.Load() {
		t.Fatalf("a good call: %v, poisoned %v", err, inst.poisoned.Load())
	}
	err := c.run(func(*call) error { panic("canary") })
	if !api.HasReason(err, api.ReasonInternal) || !inst.poisoned.Load() {
		t.Fatalf("a panic: %v, poisoned %v", err, inst.poisoned.Load())
	}
	if strings.Contains(err.Error(), "canary") {
		t.Error("the value of a panic, which may be secret, is in its error")
	}
	goOn := []string{"get", "list", "verify", "verify_batch", "export"} // export is refused anyway
	for _, v := range core.Verbs() {
		refused := c.usable(v.Name) != nil
		if want := !slices.Contains(goOn, v.Name); refused != want {
			t.Errorf("%s after a panic: refused %v, want %v", v.Name, refused, want)
		}
	}
	if other := (&call{inst: &instance{log: quiet()}}); other.usable("sign") != nil {
		t.Error("a panic in one store stops another")
	}
	if got := enter("x", nil, func(*call) error { panic("canary") }); api.Status(got) != api.StatusInternal {
		t.Errorf("enter returns %d", got)
	}
}

// The size that suffices for a bundle is at least that of what the key signs:
// its own tracks, and for a classical key the companion that a version may
// have. A kid that does not sign has none.
func TestMaxBundle(t *testing.T) {
	t.Parallel()
	kid := func(name, version string) string {
		return "acme/test/" + name + "/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90" + version
	}
	for _, a := range alg.All() {
		suites := []*alg.Alg{a}
		if companion, ok := alg.Lookup(a.Name() + "+ml-dsa-65"); ok {
			suites = append(suites, companion)
		}
		largest := 0
		for _, suite := range suites {
			var sigs []alg.Signature
			for _, track := range suite.Tracks() {
				sigs = append(sigs, alg.Signature{KID: kid(a.Name(), "#v1"), Alg: track.Name(), Value: make([]byte, max(1, track.SignatureSize()))})
			}
			if !a.Allows(alg.OpSign) {
				continue
			}
			bundle, err := alg.AppendBundle(nil, sigs)
			if err != nil {
				t.Fatal(err)
			}
			largest = max(largest, len(bundle))
		}
		if got := maxBundle(kid(a.Name(), "#v1")); got != largest {
			t.Errorf("%s: %d bytes, want %d", a.Name(), got, largest)
		}
		if got := maxBundle(kid(a.Name(), "")); a.Allows(alg.OpSign) && got <= largest || got > maxSignature {
			t.Errorf("%s without a version: %d bytes", a.Name(), got)
		}
	}
	for _, bad := range []string{"", "x", kid("rsa", ""), kid("hybrid", "#v1")} {
		if got := maxBundle(bad); got != 0 {
			t.Errorf("%q: %d bytes", bad, got)
		}
	}
}

// A fault in the caller's memory is the caller's error; one anywhere else is
// ours, and poisons.
func TestFaults(t *testing.T) {
	debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(false)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	c := &call{inst: &instance{log: quiet()}}
	err = c.run(func(*call) error {
		_, err := input(unsafe.Pointer(unsafe.SliceData(page)), 10, 10, nil)
		return err
	})
	if !api.HasReason(err, api.ReasonMalformed) || c.inst.poisoned.Load() {
		t.Errorf("caller's fault: %v, poisoned %v", err, c.inst.poisoned.Load())
	}
	err = c.run(func(*call) error {
		page[0] = 1
		return nil
	})
	if !api.HasReason(err, api.ReasonInternal) || !c.inst.poisoned.Load() {
		t.Errorf("own fault: %v, poisoned %v", err, c.inst.poisoned.Load())
	}
	defer func() {
		if recover() == nil {
			t.Error("touch swallows panics that are not faults")
		}
	}()
	touch(func() { panic("not a fault") })
}

func TestHandles(t *testing.T) {
	t.Parallel()
	table := newHandleTable()
	seen := map[uint64]bool{0: true}
	for range 100 {
		inst := &instance{log: quiet()}
		kms := table.addKMS(inst)
		s, err := table.addSession(kms, session{new(core.Session), inst})
		if err != nil {
			t.Fatal(err)
		}
		closed, err := table.addSession(kms, session{new(core.Session), inst})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []uint64{kms, s, closed} {
			if seen[id] || id < 1<<32 {
				t.Fatalf("handle %d is used again or small", id)
			}
			seen[id] = true
		}
		if _, err := table.removeSession(closed); err != nil {
			t.Fatal(err)
		}
		if _, err := table.getSession(kms); err == nil {
			t.Fatal("a store's handle opens a session")
		}
		_, open, err := table.removeKMS(kms)
		if err != nil || len(open) != 1 {
			t.Fatalf("%d sessions of a store with one open: %v", len(open), err)
		}
		if _, err := table.getSession(s); !api.HasReason(err, api.ReasonHandle) {
			t.Fatalf("session of a closed store: %v", err)
		}
		// A session that was being opened while its store was closed.
		if _, err := table.addSession(kms, session{new(core.Session), inst}); !api.HasReason(err, api.ReasonHandle) {
			t.Fatalf("session added to a closed store: %v", err)
		}
	}
	if len(table.kms)+len(table.sessions) != 0 {
		t.Errorf("the table keeps %d stores and %d sessions", len(table.kms), len(table.sessions))
	}
}

// A host that does not read its log never stops the library, and learns how
// much it missed.
func TestLogDropsRatherThanWaits(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := startLogSink(w)
	long := strings.Repeat("x", 1000)
	const written = 4 * logQueue // a pipe holds some 64 KiB: about 60 of these
	for range written {
		s.Error(long)
	}
	var got, dropped int
	var wg sync.WaitGroup
	wg.Go(func() {
		for d := json.NewDecoder(r); ; {
			var line struct {
				Msg   string
				Count int
			}
			if err := d.Decode(&line); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Errorf("log line: %v", err)
				return
			}
			if line.Msg == long {
				got++
			}
			dropped += line.Count
		}
	})
	s.close()
	wg.Wait()
	if got+dropped != written || dropped == 0 || got < logQueue {
		t.Errorf("%d lines written: %d arrived, %d reported dropped", written, got, dropped)
	}
}

func TestLogSinkRefusesBadDescriptor(t *testing.T) {
	t.Parallel()
	if _, err := newLogSink(1 << 20); !api.HasReason(err, api.ReasonMalformed) {
		t.Errorf("got %v", err)
	}
}
