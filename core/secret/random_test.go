package secret_test

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	crand "crypto/rand"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	drbg "github.com/canonical/go-sp800.90a-drbg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// seedBytes and drawBytes are what opening an arena and one draw read from the
// entropy source; reseedBytes is what a reseed reads before its draw does.
const seedBytes, drawBytes, reseedBytes = 48, 32, 64

// stream is n bytes, the same for the same seed, without repetition.
func stream(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func arenaWith(t testing.TB, o secret.Options) *secret.Arena {
	t.Helper()
	a, err := secret.NewArenaWith(1<<18, o)
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

func filled(t testing.TB, a *secret.Arena, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := a.Fill(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// an arena is HMAC_DRBG put together by hand over the same
// entropy, through a reseed and a request of several draws; and Random, Fill and
// the salt and nonce of Seal come from it.
func TestArenaIsHMACDRBG(t *testing.T) {
	t.Parallel()
	entropy := stream(1, 4096)
	source := bytes.NewReader(entropy)
	a := arenaWith(t, secret.Options{ReseedInterval: 3, Entropy: source})

	next := func(n int) (p []byte) { p, entropy = entropy[:n], entropy[n:]; return p }
	ref, err := drbg.NewHMACWithExternalEntropy(crypto.SHA256, next(32), next(16), []byte("ron-kms/drbg/v1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := 0
	want := func(n int) []byte {
		if served++; served > 3 {
			if err := ref.ReseedWithExternalEntropy(next(32), next(32)); err != nil {
				t.Fatal(err)
			}
			served = 1
		}
		p := make([]byte, n)
		if err := ref.Generate(next(32), p); err != nil {
			t.Fatal(err)
		}
		return p
	}

	if got := filled(t, a, 12); !bytes.Equal(got, want(12)) {
		t.Error("fill")
	}
	key, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(reveal(t, key), want(32)) {
		t.Error("random")
	}
	sealed, err := key.Seal(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	drawn := want(28)
	if !bytes.Equal(sealed[1:17], drawn[:16]) {
		t.Error("salt")
	}
	if !fips140.Enforced() && !bytes.Equal(sealed[17:29], drawn[16:]) {
		t.Error("nonce")
	}
	if got := filled(t, a, 1<<16+5); !bytes.Equal(got, append(want(1<<16), want(5)...)) {
		t.Error("fill of two draws")
	}
	if read := len(stream(1, 4096)) - source.Len(); read != 4096-len(entropy) {
		t.Errorf("%d bytes of entropy were read, want %d", read, 4096-len(entropy))
	}
	if st := a.Stats(); st.Draws != 5 || st.Reseeds != 1 {
		t.Errorf("%d draws and %d reseeds, want 5 and 1", st.Draws, st.Reseeds)
	}
}

// the reseed comes with draw N+1, not before and not later, and
// takes its entropy then. Nothing drawn is nothing counted.
func TestReseedAfterInterval(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{1, 2, 7} {
		source := bytes.NewReader(stream(2, 1<<14))
		a := arenaWith(t, secret.Options{ReseedInterval: n, Entropy: source})
		filled(t, a, 0)
		for i := range 4 * n {
			before := source.Len()
			filled(t, a, 1)
			read, want := before-source.Len(), drawBytes
			if i > 0 && i%n == 0 {
				want += reseedBytes
			}
			if st := a.Stats(); st.Draws != i+1 || st.Reseeds != i/n || read != want {
				t.Fatalf("interval %d, after %d draws: %+v, %d bytes read, want %d", n, i+1, st, read, want)
			}
		}
	}
}

// 1 to 2^32; zero is the default.
func TestReseedIntervalRange(t *testing.T) {
	t.Parallel()
	for n, ok := range map[uint64]bool{0: true, 1: true, 1 << 32: true, 1<<32 + 1: false, 1<<64 - 1: false} {
		a, err := secret.NewArenaWith(1, secret.Options{ReseedInterval: n})
		if (err == nil) != ok {
			t.Errorf("interval %d: %v", n, err)
		}
		if err == nil {
			a.Close()
		}
	}
	g, err := secret.NewGenerator(crand.Reader, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if g.Interval() != 100_000 || secret.DefaultReseedInterval != 100_000 {
		t.Errorf("default interval is %d", g.Interval())
	}
}

// an arena does not open on a source that fails, ends early or repeats.
func TestEntropyFailsAtOpen(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	once := stream(3, 32)
	for name, c := range map[string]struct {
		source io.Reader
		want   error
	}{
		"error":             {iotest.ErrReader(boom), boom},
		"error after seed":  {io.MultiReader(bytes.NewReader(once), iotest.ErrReader(boom)), boom},
		"empty":             {bytes.NewReader(nil), io.EOF},
		"short seed":        {bytes.NewReader(once[:31]), io.ErrUnexpectedEOF},
		"short nonce":       {bytes.NewReader(stream(3, 47)), io.ErrUnexpectedEOF},
		"all zero":          {bytes.NewReader(make([]byte, 1024)), secret.ErrEntropy},
		"stuck at one byte": {bytes.NewReader(bytes.Repeat([]byte{0xff}, 1024)), secret.ErrEntropy},
		"repeats its block": {bytes.NewReader(bytes.Repeat(once, 32)), secret.ErrEntropy},
	} {
		a, err := secret.NewArenaWith(1, secret.Options{Entropy: c.source})
		if a != nil || !errors.Is(err, secret.ErrEntropy) || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
		if a != nil {
			a.Close()
		}
	}
}

// faulty passes reads on until it is told to fail.
type faulty struct {
	io.Reader
	err error
}

func (f *faulty) Read(p []byte) (int, error) {
	if f.err != nil {
		n, _ := f.Reader.Read(p[:len(p)/2]) // a short read, then the error
		return n, f.err
	}
	return f.Reader.Read(p)
}

// R-090, D-21: when entropy fails, everything that needs it fails, and there is
// no output: neither bytes, nor a slot, nor a blob.
func TestEntropyFailsClosed(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	source := &faulty{Reader: rand.NewChaCha8([32]byte{4})}
	a := arenaWith(t, secret.Options{ReseedInterval: 1, Entropy: source})
	key, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Stats()

	source.err = boom
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, secret.ErrEntropy) || !errors.Is(err, boom) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p := bytes.Repeat([]byte{0xaa}, 100)
	check("fill", a.Fill(p))
	if !bytes.Equal(p, make([]byte, 100)) {
		t.Errorf("fill left %x", p)
	}
	b, err := a.Random(32)
	if check("random", err); b != nil {
		t.Error("random returned a slot")
	}
	sealed, err := key.Seal(key, nil)
	if check("seal", err); sealed != nil {
		t.Error("seal returned a blob")
	}
	if a.Stats() != before {
		t.Errorf("stats went from %+v to %+v", before, a.Stats())
	}

	source.err = nil // an error is not for ever
	filled(t, a, 32)
	if st := a.Stats(); st.Draws != before.Draws+1 || st.Reseeds != before.Reseeds+1 {
		t.Errorf("stats = %+v after %+v", st, before)
	}
}

// the same when the source ends or fails within a reseed, within the
// second draw of one request, or with a panic.
func TestEntropyFailsLate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		interval uint64
		have     int // bytes that the source has
		draws    int // that succeed
		size     int // of the request that fails
	}{
		"additional input":      {9, seedBytes + drawBytes + 31, 1, 32},
		"seed of a reseed":      {1, seedBytes + drawBytes + 31, 1, 32},
		"add of a reseed":       {1, seedBytes + drawBytes + 63, 1, 32},
		"draw after a reseed":   {1, seedBytes + drawBytes + reseedBytes + 31, 1, 32},
		"second of three draws": {9, seedBytes + drawBytes, 0, 3 << 16},
	} {
		a := arenaWith(t, secret.Options{ReseedInterval: c.interval, Entropy: bytes.NewReader(stream(5, c.have))})
		for range c.draws {
			filled(t, a, 1)
		}
		p := bytes.Repeat([]byte{0xaa}, c.size)
		if err := a.Fill(p); !errors.Is(err, secret.ErrEntropy) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(p, make([]byte, c.size)) {
			t.Errorf("%s: there is output", name)
		}
	}

	panics := false
	a := arenaWith(t, secret.Options{Entropy: readerFunc(func(p []byte) (int, error) {
		if panics {
			panic("source")
		}
		return crand.Read(p)
	})})
	panics = true
	p := []byte{0xaa}
	func() {
		defer func() { recover() }()
		a.Fill(p)
	}()
	if p[0] != 0 {
		t.Error("panic: there is output")
	}
	panics = false
	filled(t, a, 1) // and the lock is free
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// a source that gives a byte at a time is read until there are enough:
// the outcome is that of a source that gives all at once.
func TestShortReads(t *testing.T) {
	t.Parallel()
	whole := arenaWith(t, secret.Options{ReseedInterval: 2, Entropy: bytes.NewReader(stream(6, 4096))})
	drops := arenaWith(t, secret.Options{ReseedInterval: 2, Entropy: iotest.OneByteReader(bytes.NewReader(stream(6, 4096)))})
	for i := range 6 {
		if !bytes.Equal(filled(t, whole, 40), filled(t, drops, 40)) {
			t.Fatalf("draw %d differs", i)
		}
	}
}

// a read of entropy that begins as the one before is refused, and so is
// everything after it, however good the source is by then.
func TestRepeatedEntropy(t *testing.T) {
	t.Parallel()
	good := stream(7, 1024)
	for name, c := range map[string]struct {
		draws   int // before the repetition, of an interval of 2
		entropy [][]byte
	}{
		"draw repeats nonce":          {0, [][]byte{good[:48], good[32:48], good[48:]}},
		"draw repeats draw":           {1, [][]byte{good[:80], good[48:80], good[80:]}},
		"reseed repeats draw":         {2, [][]byte{good[:112], good[80:112], good[112:]}},
		"add of reseed repeats seed":  {2, [][]byte{good[:144], good[112:144], good[144:]}},
		"draw repeats that of reseed": {2, [][]byte{good[:176], good[144:176], good[176:]}},
	} {
		a := arenaWith(t, secret.Options{ReseedInterval: 2, Entropy: bytes.NewReader(slices.Concat(c.entropy...))})
		for range c.draws {
			filled(t, a, 32)
		}
		for range 3 {
			p := bytes.Repeat([]byte{0xaa}, 32)
			if err := a.Fill(p); !errors.Is(err, secret.ErrEntropy) || !strings.Contains(err.Error(), "repeats") {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(p, make([]byte, 32)) {
				t.Errorf("%s: there is output", name)
			}
		}
	}
	// Equal bytes further on, or two reads apart, are not a repetition.
	a := arenaWith(t, secret.Options{Entropy: bytes.NewReader(slices.Concat(good[:48], good[64:96], good[48:64], good[80:96], good[64:96]))})
	filled(t, a, 32)
	filled(t, a, 32)
	filled(t, a, 32)
}

// D-19, D-21: two copies of one state, as a cloned machine or a forked process
// has them, give different bytes from their first draw on, because each draw
// takes fresh entropy. Given the same entropy they give the same bytes, so it is
// nothing else that parts them.
func TestClonesDiverge(t *testing.T) {
	t.Parallel()
	same := stream(8, seedBytes+5*drawBytes) // of five draws before the copy
	pair := func(then func() io.Reader) (x, y *secret.Arena) {
		open := func() *secret.Arena {
			a := arenaWith(t, secret.Options{Entropy: io.MultiReader(bytes.NewReader(same), then())})
			for range 5 {
				filled(t, a, 32)
			}
			return a
		}
		return open(), open()
	}

	x, y := pair(func() io.Reader { return bytes.NewReader(stream(9, 1024)) })
	for i := range 5 {
		if !bytes.Equal(filled(t, x, 32), filled(t, y, 32)) {
			t.Fatalf("draw %d: the two are not copies, the test proves nothing", i)
		}
	}

	x, y = pair(func() io.Reader { return crand.Reader })
	seen := map[string]bool{}
	for range 5 {
		seen[string(filled(t, x, 32))] = true
		seen[string(filled(t, y, 32))] = true
	}
	if len(seen) != 10 {
		t.Errorf("%d different outputs of 10", len(seen))
	}

	x, y = pair(func() io.Reader { return crand.Reader })
	key := bytes.Repeat([]byte{1}, 32)
	s, err := fill(t, x, key).Seal(fill(t, x, key), nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := fill(t, y, key).Seal(fill(t, y, key), nil)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(s[1:17], u[1:17]) || bytes.Equal(s[17:29], u[17:29]) {
		t.Error("clones sealed with the same salt or nonce")
	}
}

// draws from many goroutines are all different, all counted, and the
// reseeds come at their number. The source is read by one at a time: the race
// detector watches the one given here.
func TestConcurrentDraws(t *testing.T) {
	t.Parallel()
	const workers, each, interval = 8, 100, 7
	a := arenaWith(t, secret.Options{ReseedInterval: interval, Entropy: rand.NewChaCha8([32]byte{10})})
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				var p [16]byte
				if err := a.Fill(p[:]); err != nil {
					t.Error(err)
				}
				a.Stats()
				mu.Lock()
				seen[string(p[:])] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != workers*each {
		t.Errorf("%d different outputs of %d", len(seen), workers*each)
	}
	if st := a.Stats(); st.Draws != workers*each || st.Reseeds != (workers*each-1)/interval {
		t.Errorf("stats = %+v", st)
	}
}

func TestFillAfterClose(t *testing.T) {
	t.Parallel()
	a, err := secret.NewArena(1)
	if err != nil {
		t.Fatal(err)
	}
	filled(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	p := []byte{0xaa}
	if err := a.Fill(p); !errors.Is(err, secret.ErrDestroyed) || p[0] != 0 {
		t.Errorf("%v, %x", err, p)
	}
	if st := a.Stats(); st.Draws != 1 {
		t.Errorf("stats = %+v", st)
	}
}

// In Go's FIPS 140-only mode the generator works, and sealing lets the module
// draw the nonce. The mode is set for a whole process, so in a child.
func TestFIPSOnly(t *testing.T) {
	t.Parallel()
	if fips140.Enforced() {
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^(TestSeal|TestUnseal|TestArenaIsHMACDRBG|TestHMACDRBGVectors)", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestSealUnseal")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func BenchmarkFill(b *testing.B) {
	a := newArena(b, 1)
	p := make([]byte, 32)
	b.ReportAllocs()
	for b.Loop() {
		if err := a.Fill(p); err != nil {
			b.Fatal(err)
		}
	}
}
