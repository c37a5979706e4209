package secret_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/rustyonions/ron-kms/core/secret"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func newArena(t testing.TB, size int) *secret.Arena {
	t.Helper()
	a, err := secret.NewArena(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// fill writes p into a new slot.
func fill(t testing.TB, a *secret.Arena, p []byte) *secret.Bytes {
	t.Helper()
	b, err := a.New(len(p))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Use(func(q []byte) { copy(q, p) }); err != nil {
		t.Fatal(err)
	}
	return b
}

// reveal copies the bytes of b out.
func reveal(t testing.TB, b *secret.Bytes) []byte {
	t.Helper()
	out := make([]byte, b.Len())
	if err := b.Use(func(p []byte) { copy(out, p) }); err != nil {
		t.Fatal(err)
	}
	return out
}

// a slot reads zero after Destroy, and a reused one when handed out.
func TestReleasedSlotIsZero(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1<<16)
	for _, n := range []int{1, 63, 64, 65, 4096, 5000} {
		b := fill(t, a, bytes.Repeat([]byte{0xa5}, n))
		mem := b.Peek()
		if !bytes.Contains(mem, bytes.Repeat([]byte{0xa5}, n)) {
			t.Fatalf("%d bytes: slot does not hold what was written", n)
		}
		b.Destroy()
		b.Destroy()
		if !bytes.Equal(mem, make([]byte, len(mem))) {
			t.Errorf("%d bytes: released slot is not zero", n)
		}
		// A stray write to a free slot must not reach its next owner.
		mem[0] = 0xff
		c, err := a.New(n)
		if err != nil {
			t.Fatal(err)
		}
		if &c.Peek()[0] != &mem[0] {
			t.Errorf("%d bytes: slot was not reused", n)
		}
		if !bytes.Equal(reveal(t, c), make([]byte, n)) {
			t.Errorf("%d bytes: new slot is not zero", n)
		}
		c.Destroy()
	}
}

// Close wipes what is still alive, and refuses everything afterwards.
func TestClose(t *testing.T) {
	t.Parallel()
	a, err := secret.NewArena(1)
	if err != nil {
		t.Fatal(err)
	}
	b := fill(t, a, []byte("canary"))
	key := fill(t, a, make([]byte, 32))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if err := b.Use(func([]byte) { t.Error("lent after close") }); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("use: %v", err)
	}
	if _, err := a.New(1); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("new: %v", err)
	}
	if _, err := a.Random(1); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("random: %v", err)
	}
	if _, err := key.Seal(b, nil); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("seal: %v", err)
	}
	if _, err := key.Unseal(a, nil, nil); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("unseal: %v", err)
	}
	if _, err := key.Derive(a, "x", 32); !errors.Is(err, secret.ErrDestroyed) {
		t.Errorf("derive: %v", err)
	}
	if b.Equal(b) {
		t.Error("a destroyed secret equals itself")
	}
	b.Destroy()
	if got, want := a.Stats(), (secret.Stats{Size: os.Getpagesize()}); got != want {
		t.Errorf("stats = %+v, want %+v", got, want)
	}
}

func TestZeroBytes(t *testing.T) {
	t.Parallel()
	for _, b := range []*secret.Bytes{nil, {}} {
		if err := b.Use(func([]byte) { t.Error("lent") }); !errors.Is(err, secret.ErrDestroyed) {
			t.Errorf("use: %v", err)
		}
		if b.Len() != 0 || b.Equal(b) {
			t.Error("zero value holds something")
		}
		b.Destroy()
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, -1, 1 << 50} {
		if a, err := secret.NewArena(n); err == nil {
			a.Close()
			t.Errorf("arena of %d bytes was opened", n)
		}
	}
	a := newArena(t, 1)
	for _, n := range []int{0, -1} {
		if _, err := a.New(n); err == nil {
			t.Errorf("slot of %d bytes was handed out", n)
		}
	}
	_, err := a.New(os.Getpagesize() + 1)
	if !errors.Is(err, secret.ErrArenaFull) || !strings.Contains(err.Error(), "arena is full") {
		t.Errorf("too large a slot: %v", err)
	}
}

// Small slots that come and go must not make a large one impossible.
func TestArenaFullAndBack(t *testing.T) {
	t.Parallel()
	const size = 1 << 17
	a := newArena(t, size)
	var all []*secret.Bytes
	for {
		b, err := a.New(64)
		if errors.Is(err, secret.ErrArenaFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	if want := size / 64; len(all) != want {
		t.Errorf("%d slots, want %d", len(all), want)
	}
	for _, b := range all {
		b.Destroy()
	}
	b, err := a.New(size)
	if err != nil {
		t.Fatalf("after all slots were released: %v", err)
	}
	b.Destroy()
}

// The allocator against a model: slots are aligned, disjoint, zero when handed
// out, keep what is written, and a request is refused only if no arrangement
// of the free space could serve it.
func TestAllocatorModel(t *testing.T) {
	t.Parallel()
	const size = 1 << 14
	rapid.Check(t, func(rt *rapid.T) {
		a, err := secret.NewArena(size)
		if err != nil {
			rt.Fatal(err)
		}
		defer a.Close()
		base := a.Addr()
		type held struct {
			b   *secret.Bytes
			tag byte
		}
		var live []held
		taken := make([]bool, size/64) // which granules are in use
		mark := func(b *secret.Bytes, v bool) {
			mem := b.Peek()
			off := int(uintptr(unsafe.Pointer(&mem[0])) - base)
			if off%64 != 0 {
				rt.Fatalf("slot at offset %d is not aligned", off)
			}
			for i := off / 64; i < (off+len(mem))/64; i++ {
				if taken[i] == v {
					rt.Fatalf("granule %d: two owners", i)
				}
				taken[i] = v
			}
		}
		longest := func() (best int) {
			run := 0
			for _, t := range taken {
				if run++; t {
					run = 0
				}
				best = max(best, run*64)
			}
			return best
		}
		rt.Repeat(map[string]func(*rapid.T){
			"new": func(rt *rapid.T) {
				n := rapid.OneOf(rapid.IntRange(1, 200), rapid.IntRange(1, size)).Draw(rt, "n")
				b, err := a.New(n)
				if err != nil {
					if !errors.Is(err, secret.ErrArenaFull) || n <= longest() {
						rt.Fatalf("new(%d) with %d free in a row: %v", n, longest(), err)
					}
					return
				}
				mark(b, true)
				tag := byte(len(live)*7 + 1)
				b.Use(func(p []byte) {
					if !bytes.Equal(p, make([]byte, n)) {
						rt.Fatal("new slot is not zero")
					}
					for i := range p {
						p[i] = tag
					}
				})
				live = append(live, held{b, tag})
			},
			"destroy": func(rt *rapid.T) {
				if len(live) == 0 {
					rt.Skip("nothing to destroy")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(rt, "i")
				mark(live[i].b, false)
				live[i].b.Destroy()
				live = append(live[:i], live[i+1:]...)
			},
			"": func(rt *rapid.T) {
				used := 0
				for _, h := range live {
					used += len(h.b.Peek())
					h.b.Use(func(p []byte) {
						if !bytes.Equal(p, bytes.Repeat([]byte{h.tag}, len(p))) {
							rt.Fatal("slot lost its content")
						}
					})
				}
				if got, want := a.Stats(), (secret.Stats{Size: size, Used: used, Slots: len(live), Locked: true}); got != want {
					rt.Fatalf("stats = %+v, want %+v", got, want)
				}
			},
		})
	})
}

// Users, destroyers and Close at once. The race detector does not watch the
// arena's memory, so a user that runs on wiped or unmapped memory shows by
// what it reads.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	for range 50 {
		a, err := secret.NewArena(1 << 16)
		if err != nil {
			t.Fatal(err)
		}
		b := fill(t, a, bytes.Repeat([]byte{7}, 100))
		c := fill(t, a, bytes.Repeat([]byte{7}, 100))
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 6 {
			wg.Go(func() {
				<-start
				x, y := b, c
				if i%2 == 1 {
					x, y = c, b
				}
				for {
					err := x.Use(func(p []byte) {
						y.Equal(x) // nested holds in both orders
						for _, v := range p {
							if v != 7 {
								t.Error("lent bytes were wiped during the call")
								return
							}
						}
					})
					if err != nil {
						return
					}
				}
			})
		}
		for range 2 {
			wg.Go(func() {
				<-start
				for {
					n, err := a.New(500)
					if err != nil {
						return
					}
					n.Destroy()
				}
			})
		}
		wg.Go(func() { <-start; b.Destroy() })
		wg.Go(func() { <-start; b.Destroy() })
		wg.Go(func() {
			<-start
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
		close(start)
		wg.Wait()
	}
}

// Destroy returns only when the last user has left.
func TestDestroyWaits(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	b := fill(t, a, []byte{1})
	in, out, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go b.Use(func(p []byte) {
		close(in)
		<-out
		if p[0] != 1 {
			t.Error("wiped during the call")
		}
	})
	<-in
	go func() { b.Destroy(); close(done) }()
	for b.Use(func([]byte) {}) == nil { // until Destroy has begun
	}
	select {
	case <-done:
		t.Error("destroyed while in use")
	default:
	}
	close(out)
	<-done
	if b.Peek()[0] != 0 {
		t.Error("not wiped")
	}
}

// A panic of fn passes through and leaves the secret usable and destroyable.
func TestUsePanics(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	b := fill(t, a, []byte{1})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("panic was swallowed")
			}
		}()
		b.Use(func([]byte) { panic("x") })
	}()
	if got := reveal(t, b); got[0] != 1 {
		t.Error("content lost")
	}
	b.Destroy()
}

// R-073, D-23: the pages are locked, not dumped, and wiped in forked children.
func TestPagesAreProtected(t *testing.T) {
	a := newArena(t, 1<<20)
	flags := vmFlags(t, a.Addr())
	for flag, what := range map[string]string{"lo": "locked", "dd": "left out of dumps", "wf": "wiped on fork"} {
		if !flags[flag] {
			t.Errorf("pages are not %s (VmFlags %v)", what, flags)
		}
	}
	if kb := vmLck(t); kb < 1024 {
		t.Errorf("VmLck = %d kB, want at least 1024", kb)
	}
	if !a.Stats().Locked {
		t.Error("stats do not say locked")
	}
}

func vmFlags(t *testing.T, addr uintptr) map[string]bool {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	inside := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var lo, hi uintptr
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x ", &lo, &hi); n == 2 {
			inside = lo <= addr && addr < hi
		}
		if rest, ok := strings.CutPrefix(sc.Text(), "VmFlags:"); ok && inside {
			flags := map[string]bool{}
			for _, s := range strings.Fields(rest) {
				flags[s] = true
			}
			return flags
		}
	}
	t.Fatal("mapping not found")
	return nil
}

func vmLck(t *testing.T) (kb int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmLck:")
	fmt.Sscan(rest, &kb)
	return kb
}

// A process that may not lock enough gets an error that names the limit, and
// its other arena lives on. It runs in a child that gives up its privilege.
func TestLockLimit(t *testing.T) {
	const env = "RON_KMS_TEST_LOCK_LIMIT"
	if os.Getenv(env) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLockLimit$", "-test.v")
		cmd.Env = append(os.Environ(), env+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if bytes.Contains(out, []byte("--- SKIP")) {
			t.Skipf("%s", out)
		}
		return
	}
	first := newArena(t, 1)
	b := fill(t, first, []byte("kept"))
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		t.Skip(err)
	}
	if os.Getuid() == 0 {
		if err := unix.Setuid(65534); err != nil { // drops CAP_IPC_LOCK
			t.Skip(err)
		}
	}
	_, err := secret.NewArena(1 << 20)
	if err == nil {
		t.Fatal("locked more than the limit")
	}
	for _, want := range []string{"RLIMIT_MEMLOCK is 65536 bytes", "ulimit -l", "LimitMEMLOCK"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if got := reveal(t, b); string(got) != "kept" {
		t.Error("the failure cost another arena its content")
	}
}

func TestRandom(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	x, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	y, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	if x.Equal(y) || bytes.Equal(reveal(t, x), make([]byte, 32)) {
		t.Error("not random")
	}
}

func BenchmarkNewDestroy(b *testing.B) {
	a := newArena(b, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		s, err := a.New(32)
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}

func BenchmarkUse(b *testing.B) {
	a := newArena(b, 1)
	s, err := a.Random(32)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		s.Use(func(p []byte) { n += len(p) })
	}
}
