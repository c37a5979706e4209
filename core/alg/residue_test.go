package alg_test

import (
	"bufio"
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// masked is a copy of a secret that does not look like it, with the addresses
// of the slot it came from.
type masked struct {
	bytes []byte
	addr  uintptr
}

const mask = 0xa7

func maskOf(t *testing.T, b *secret.Bytes, from, n int) masked {
	t.Helper()
	m := masked{bytes: make([]byte, n)}
	if err := b.Use(func(p []byte) {
		m.addr = uintptr(unsafe.Pointer(&p[0]))
		for i := range m.bytes {
			m.bytes[i] = p[from+i] ^ mask
		}
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// copies counts, in the whole writable memory of this process but the mapping
// that the slot is in, how often the secret occurs.
func (m masked) copies(t *testing.T) (n int) {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skip(err)
	}
	defer mem.Close()
	buf, scanned := make([]byte, 1<<20), 0
	for sc := bufio.NewScanner(maps); sc.Scan(); {
		var lo, hi uintptr
		var perm string
		if k, _ := fmt.Sscanf(sc.Text(), "%x-%x %s", &lo, &hi, &perm); k != 3 || !strings.HasPrefix(perm, "rw") || lo <= m.addr && m.addr < hi {
			continue
		}
		for at := lo; at < hi; at += uintptr(len(buf) - len(m.bytes)) {
			k, _ := mem.ReadAt(buf[:min(len(buf), int(hi-at))], int64(at)) // pages may be missing
			scanned += k
			for rest := buf[:k]; ; rest = rest[1:] {
				i := bytes.IndexByte(rest, m.bytes[0]^mask)
				if i < 0 || len(rest)-i < len(m.bytes) {
					break
				}
				rest = rest[i:]
				j := 0
				for j < len(m.bytes) && rest[j]^mask == m.bytes[j] {
					j++
				}
				if j == len(m.bytes) {
					n++
				}
			}
		}
	}
	clear(buf)
	if scanned < 1<<20 {
		t.Fatalf("scanned %d bytes only", scanned)
	}
	return n
}

// useData does with an expanded key what its track is for, on a data key that is
// in a slot. What it derives it masks.
func useData(t *testing.T, a *secret.Arena, k keyPair, data *secret.Bytes) (derived masked) {
	t.Helper()
	var err, opened error
	same := false
	compare := func(p []byte) {
		opened = data.Use(func(q []byte) { same = subtle.ConstantTimeCompare(p, q) == 1 })
	}
	switch tr := k.track; tr.Kind() {
	case alg.KindSign:
		k.sign(t, []byte("message"))
		return derived
	case alg.KindKEM:
		var enc, ct []byte
		lent := data.Use(func(p []byte) { enc, ct, err = k.public.SealTo([]byte("info"), []byte("aad"), p) })
		err = errors.Join(err, lent, tr.OpenFrom(k.expanded, []byte("info"), []byte("aad"), enc, ct, compare))
		ct[0] ^= 1
		if tr.OpenFrom(k.expanded, []byte("info"), []byte("aad"), enc, ct, compare) != alg.ErrOpen {
			t.Fatal("opened what was changed")
		}
	case alg.KindAEAD:
		var blob []byte
		lent := data.Use(func(p []byte) { blob, err = tr.SealWith(k.expanded, []byte("aad"), p) })
		err = errors.Join(err, lent, tr.OpenWith(k.expanded, []byte("aad"), blob, compare))
	case alg.KindKDF:
		seed, err := tr.DeriveSeed(k.expanded, a, "info", 32)
		if err != nil {
			t.Fatal(err)
		}
		derived = maskOf(t, seed, 0, 32)
		seed.Destroy()
		return derived
	}
	if err != nil || opened != nil || !same {
		t.Fatalf("%s: %v, %v, same = %v", k.track.Name(), err, opened, same)
	}
	return derived
}

// D-23: in builds that erase (see secret.Do), no copy of a private
// key, of what was sealed, or of what was derived, is left outside the arena
// after keys were expanded, used, sealed and opened.
func TestNoCopiesLeft(t *testing.T) {
	if !secret.Enabled() {
		t.Skip("this build does not erase: GOEXPERIMENT=runtimesecret is off")
	}
	a := newArena(t)
	kek, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	data, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]masked{
		"key encryption key": maskOf(t, kek, 0, 32),
		"data key":           maskOf(t, data, 0, 32),
	}
	for _, tr := range tracks() {
		seed, _, err := tr.Generate(a)
		if err != nil {
			t.Fatal(err)
		}
		secrets[tr.Name()+" seed"] = maskOf(t, seed, 0, 32)
		if tr.SeedSize() == 64 {
			secrets[tr.Name()+" seed, second half"] = maskOf(t, seed, 32, 32)
		}
		sealed, err := kek.Seal(seed, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			opened, err := kek.Unseal(a, sealed, nil)
			if err != nil {
				t.Fatal(err)
			}
			k := newPair(t, a, tr, opened)
			if derived := useData(t, a, k, data); derived.bytes != nil {
				secrets[tr.Name()+" derived"] = derived
			}
			if strings.HasPrefix(tr.Name(), "ml-dsa-") {
				secrets[tr.Name()+" K"] = maskOf(t, k.expanded, 32, 32) // FIPS 204 Algorithm 6
			}
			k.expanded.Destroy()
			opened.Destroy()
		}
	}
	runtime.GC()
	runtime.GC()
	for name, m := range secrets {
		if n := m.copies(t); n != 0 {
			t.Errorf("%s: %d copies", name, n)
		}
	}
	// The search finds a copy where there is one.
	planted := make([]byte, 32)
	if err := kek.Use(func(p []byte) { copy(planted, p) }); err != nil {
		t.Fatal(err)
	}
	if n := secrets["key encryption key"].copies(t); n == 0 {
		t.Error("the planted copy was not found")
	}
	secret.Wipe(planted)
}
