// Package backendtest is the contract of [backends.Backend] as a suite of
// tests, which every backend must pass: a backend's own tests call [Run].
package backendtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// Open opens a fresh, empty store with the smallest arena that the backend
// takes (see [ArenaSize]). The suite closes it.
type Open func(t *testing.T) backends.Backend

// Reopen closes a store and opens it again. It is nil for a backend that
// forgets.
type Reopen func(t *testing.T, b backends.Backend) backends.Backend

// ArenaSize is how much locked memory the suite wants a store to have, in
// bytes: room for three expanded ML-DSA-65 keys and not for four, so that
// eviction happens.
const ArenaSize = 256 << 10

// Run checks that a backend keeps its contract.
func Run(t *testing.T, open Open, reopen Reopen) {
	s := suite{open, reopen}
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Caps", s.caps},
		{"Sign", s.sign},
		{"SealedBinding", s.binding},
		{"SealedFlips", s.flips},
		{"Records", s.records},
		{"RecordsOrder", s.order},
		{"RecordsConcurrent", s.concurrentCommits},
		{"Eviction", s.eviction},
		{"ArenaFull", s.arenaFull},
		{"Concurrent", s.concurrent},
		{"StoreKey", s.storeKey},
		{"Wrap", s.wrap},
		{"WrapBinding", s.wrapBinding},
		{"Derive", s.derive},
		{"Reopen", s.reopened},
		{"Closed", s.closed},
		{"CloseWhileBusy", s.closeWhileBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

type suite struct {
	open   Open
	reopen Reopen
}

var ctx = context.Background()

func (s suite) fresh(t *testing.T) backends.Backend {
	t.Helper()
	b := s.open(t)
	t.Cleanup(func() { b.Close() })
	return b
}

// ref names one track of a new key.
func ref(algorithm, track string) backends.Ref {
	return backends.Ref{
		KID:   api.KID{Tenant: "acme", Purpose: "test", Alg: algorithm, ID: uuid.NewString(), Version: 1},
		Track: track,
	}
}

func generate(t *testing.T, b backends.Backend, r backends.Ref) backends.Material {
	t.Helper()
	m, err := b.Generate(ctx, r)
	if err != nil {
		t.Fatalf("generate %s: %v", r.Track, err)
	}
	return m
}

// check signs and verifies the signature with package alg, which knows nothing
// of the backend.
func check(b backends.Backend, r backends.Ref, m backends.Material) error {
	msg := make([]byte, 40)
	rand.Read(msg)
	sig, err := b.Sign(ctx, r, alg.SchemeV1, m.Sealed, msg)
	if err != nil {
		return err
	}
	track, ok := alg.LookupTrack(r.Track)
	if !ok {
		return fmt.Errorf("no track %s", r.Track)
	}
	public, err := track.ParsePublic(m.Public)
	if err != nil {
		return err
	}
	if !public.Verify(msg, sig) {
		return errors.New("the signature does not verify")
	}
	msg[0] ^= 1
	if public.Verify(msg, sig) {
		return errors.New("the signature verifies for another message")
	}
	return nil
}

func must(t *testing.T, b backends.Backend, r backends.Ref, m backends.Material) {
	t.Helper()
	if err := check(b, r, m); err != nil {
		t.Fatalf("%s: %v", r.Track, err)
	}
}

// signable lists every (algorithm, track) of the allow-list that the backend
// claims to sign with.
func signable(b backends.Backend) (refs []backends.Ref) {
	for _, a := range alg.All() {
		for _, t := range a.Tracks() {
			if has(b, t.Name(), backends.OpSign) {
				refs = append(refs, ref(a.Name(), t.Name()))
			}
		}
	}
	return refs
}

func has(b backends.Backend, track string, op backends.Operation) bool {
	return slices.ContainsFunc(b.Caps(), func(c backends.Cap) bool { return c.Track == track && c.Operation == op })
}

// caps: what is listed works, and what is not is ErrUnsupported..
func (s suite) caps(t *testing.T) {
	b := s.fresh(t)
	if b.Name() == "" || len(b.Caps()) == 0 {
		t.Fatal("a backend has a name and can do something")
	}
	seen := make(map[backends.Cap]bool)
	for _, c := range b.Caps() {
		if _, ok := alg.LookupTrack(c.Track); !ok {
			t.Errorf("%s is listed and not on the allow-list", c.Track)
		}
		if c.Class == "" {
			t.Errorf("%s %s has no attestation class", c.Track, c.Operation)
		}
		if seen[c] {
			t.Errorf("%v is listed twice", c)
		}
		seen[c] = true
	}
	var real [][]byte
	for _, a := range alg.All() {
		for _, tr := range tracks() {
			if !backends.Serves(a, tr) {
				r := ref(a.Name(), tr.Name())
				if _, err := b.Generate(ctx, r); !errors.Is(err, backends.ErrUnsupported) {
					t.Errorf("generate %s/%s: %v, want ErrUnsupported", a.Name(), tr.Name(), err)
				}
				continue
			}
			r := ref(a.Name(), tr.Name())
			m, err := b.Generate(ctx, r)
			if listed := has(b, tr.Name(), backends.OpGenerate); listed != (err == nil) {
				t.Errorf("generate %s: listed %t, error %v", tr.Name(), listed, err)
			} else if !listed && !errors.Is(err, backends.ErrUnsupported) {
				t.Errorf("generate %s: %v, want ErrUnsupported", tr.Name(), err)
			}
			if err != nil {
				continue
			}
			real = append(real, m.Sealed)
			for op, try := range uses {
				err := try(b, r, m)
				if listed := has(b, tr.Name(), op); listed != (err == nil) {
					t.Errorf("%s %s: listed %t, error %v", op, tr.Name(), listed, err)
				} else if !listed && !errors.Is(err, backends.ErrUnsupported) {
					t.Errorf("%s %s: %v, want ErrUnsupported", op, tr.Name(), err)
				}
			}
		}
	}
	for _, r := range []backends.Ref{
		ref("ml-dsa-65", "ed25519"),           // a companion is post-quantum
		ref("x25519", "ml-kem-768"),           // a hybrid KEM is one track
		ref("aes-256-gcm", "hkdf-sha256"),     // a track, of another algorithm
		ref("ed25519+ml-dsa-65", "ml-dsa-44"), // no track at all
		ref("ed25519", ""),
		ref("ed25519", "Ed25519"), // tracks have no aliases
		ref("rsa-2048", "ed25519"),
		ref("", "ed25519"),
		{},
	} {
		if _, err := b.Generate(ctx, r); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("generate %s/%s: %v, want ErrUnsupported", r.KID.Alg, r.Track, err)
		}
		if _, err := b.Sign(ctx, r, alg.SchemeV1, real[0], []byte("m")); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("sign %s/%s: %v, want ErrUnsupported", r.KID.Alg, r.Track, err)
		}
		for op, try := range uses {
			if err := try(b, r, backends.Material{Sealed: real[0]}); !errors.Is(err, backends.ErrUnsupported) {
				t.Errorf("%s %s/%s: %v, want ErrUnsupported", op, r.KID.Alg, r.Track, err)
			}
		}
	}
}

// sign: keys are distinct, signatures hold, and a forgotten key comes back
// from its sealed form.
func (s suite) sign(t *testing.T) {
	b := s.fresh(t)
	for _, r := range signable(b) {
		m, other := generate(t, b, r), generate(t, b, ref(r.KID.Alg, r.Track))
		if bytes.Equal(m.Public, other.Public) || bytes.Equal(m.Sealed, other.Sealed) {
			t.Fatalf("%s: two keys are the same", r.Track)
		}
		for range 2 {
			must(t, b, r, m)
			must(t, b, r, m) // from the cache
			b.Forget(r)
			b.Forget(r) // nothing left to forget
		}
		// Two keys made for one name are still two keys.
		again := generate(t, b, r)
		must(t, b, r, m)
		must(t, b, r, again)
		must(t, b, r, m)
	}
}

// binding: a sealed key opens under its own kid, version and track only,
// whether or not that key is cached..
func (s suite) binding(t *testing.T) {
	b := s.fresh(t)
	foreign := s.fresh(t)
	for _, r := range signable(b) {
		m := generate(t, b, r)
		for _, cached := range []bool{false, true} {
			if cached {
				must(t, b, r, m)
			}
			for name, change := range map[string]func(*backends.Ref){
				"tenant":  func(r *backends.Ref) { r.KID.Tenant = "evil" },
				"purpose": func(r *backends.Ref) { r.KID.Purpose = "other" },
				"id":      func(r *backends.Ref) { r.KID.ID = uuid.NewString() },
				"version": func(r *backends.Ref) { r.KID.Version++ },
			} {
				w := r
				change(&w)
				if _, err := b.Sign(ctx, w, alg.SchemeV1, m.Sealed, []byte("m")); !errors.Is(err, backends.ErrTampered) {
					t.Errorf("%s under another %s (cached %t): %v, want ErrTampered", r.Track, name, cached, err)
				}
			}
			other := ref(r.KID.Alg, r.Track)
			generate(t, b, other)
			if _, err := b.Sign(ctx, other, alg.SchemeV1, m.Sealed, []byte("m")); !errors.Is(err, backends.ErrTampered) {
				t.Errorf("%s with the sealed form of another key: %v, want ErrTampered", r.Track, err)
			}
			if _, err := foreign.Sign(ctx, r, alg.SchemeV1, m.Sealed, []byte("m")); !errors.Is(err, backends.ErrTampered) {
				t.Errorf("%s of another store: %v, want ErrTampered", r.Track, err)
			}
		}
	}
	// Both tracks of a hybrid are seeds of the same length: only the binding
	// keeps one from being used as the other.
	r := ref("ed25519+ml-dsa-65", "ed25519")
	if has(b, "ed25519", backends.OpSign) && has(b, "ml-dsa-65", backends.OpSign) {
		m := generate(t, b, r)
		r.Track = "ml-dsa-65"
		if _, err := b.Sign(ctx, r, alg.SchemeV1, m.Sealed, []byte("m")); !errors.Is(err, backends.ErrTampered) {
			t.Errorf("one track as the other: %v, want ErrTampered", err)
		}
	}
}

// flips: no byte of a sealed key can be changed, cut or added, cached or not.
//
func (s suite) flips(t *testing.T) {
	b := s.fresh(t)
	for _, r := range signable(b) {
		m := generate(t, b, r)
		tampered := func(what string, sealed []byte) {
			t.Helper()
			if _, err := b.Sign(ctx, r, alg.SchemeV1, sealed, []byte("m")); !errors.Is(err, backends.ErrTampered) {
				t.Fatalf("%s, %s: %v, want ErrTampered", r.Track, what, err)
			}
		}
		for _, cached := range []bool{false, true} {
			if cached {
				must(t, b, r, m)
			}
			for i := range m.Sealed {
				bad := bytes.Clone(m.Sealed)
				bad[i] ^= 1 << (i % 8)
				tampered(fmt.Sprintf("byte %d flipped, cached %t", i, cached), bad)
			}
			for _, n := range []int{0, 1, len(m.Sealed) / 2, len(m.Sealed) - 1} {
				tampered("cut", m.Sealed[:n])
			}
			tampered("nil", nil)
			tampered("longer", append(bytes.Clone(m.Sealed), 0))
		}
		must(t, b, r, m) // nothing of that has harmed the key
	}
}

// eviction: more keys than the arena holds sign all the same, and the arena
// does not fill up. R-320.
func (s suite) eviction(t *testing.T) {
	b := s.fresh(t)
	if !has(b, "ml-dsa-65", backends.OpSign) {
		return
	}
	before := b.Arena().Stats()
	type pair struct {
		backends.Ref
		backends.Material
	}
	var keys []pair
	for range 8 {
		r := ref("ml-dsa-65", "ml-dsa-65")
		keys = append(keys, pair{r, generate(t, b, r)})
	}
	if got := b.Arena().Stats(); got.Used != before.Used {
		t.Errorf("generating keys leaves %d bytes in the arena", got.Used-before.Used)
	}
	for range 2 {
		for _, k := range keys {
			must(t, b, k.Ref, k.Material)
		}
	}
	for i := range 20 {
		k, err := b.StoreKey("after eviction", 8000)
		if err != nil {
			t.Errorf("derive %d does not evict: %v", i, err)
			break
		}
		defer k.Destroy()
		before.Used += 8000 / 64 * 64
	}
	for _, k := range keys {
		b.Forget(k.Ref)
	}
	if got := b.Arena().Stats(); got.Used != before.Used {
		t.Errorf("forgotten keys leave %d bytes in the arena", got.Used-before.Used)
	}
}

// arenaFull: an arena that others have filled is a clear error, and passes
// when they give it back.
func (s suite) arenaFull(t *testing.T) {
	b := s.fresh(t)
	refs := signable(b)
	r := refs[len(refs)-1]
	m := generate(t, b, r)
	var hogs []interface{ Destroy() }
	for n := 64 << 10; n >= 1; n /= 2 {
		for {
			hog, err := b.Arena().New(n)
			if err != nil {
				break
			}
			hogs = append(hogs, hog)
		}
	}
	if _, err := b.Sign(ctx, r, alg.SchemeV1, m.Sealed, []byte("m")); !errors.Is(err, backends.ErrArenaFull) {
		t.Errorf("sign: %v, want ErrArenaFull", err)
	}
	if _, err := b.Generate(ctx, ref(r.KID.Alg, r.Track)); !errors.Is(err, backends.ErrArenaFull) {
		t.Errorf("generate: %v, want ErrArenaFull", err)
	}
	if _, err := b.StoreKey("full", 32); !errors.Is(err, backends.ErrArenaFull) {
		t.Errorf("derive: %v, want ErrArenaFull", err)
	}
	for _, h := range hogs {
		h.Destroy()
	}
	must(t, b, r, m)
}

// storeKey: one label gives one key, also after reopening; two labels give two.
func (s suite) storeKey(t *testing.T) {
	b := s.fresh(t)
	read := func(b backends.Backend, label string, n int) []byte {
		t.Helper()
		k, err := b.StoreKey(label, n)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Destroy()
		var out []byte
		if err := k.Use(func(p []byte) { out = bytes.Clone(p) }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := read(b, "a", 32)
	if len(first) != 32 || bytes.Equal(first, make([]byte, 32)) {
		t.Fatal("the derived key is empty")
	}
	if !bytes.Equal(first, read(b, "a", 32)) {
		t.Error("one label gives two keys")
	}
	if bytes.Equal(first, read(b, "b", 32)) || bytes.Equal(first, read(b, "", 32)) {
		t.Error("two labels give one key")
	}
	if bytes.Equal(first, read(s.fresh(t), "a", 32)) {
		t.Error("two stores derive the same key")
	}
	if s.reopen != nil {
		b = s.reopen(t, b)
		if !bytes.Equal(first, read(b, "a", 32)) {
			t.Error("the derived key is another one after reopening")
		}
	}
}

// reopened: what was committed is there, and keys sign as before. R-261.
func (s suite) reopened(t *testing.T) {
	b := s.fresh(t)
	refs := signable(b)
	var keys []backends.Material
	rev := uint64(0)
	for _, r := range refs {
		m := generate(t, b, r)
		keys = append(keys, m)
		var err error
		if rev, err = b.Commit(ctx, rev, backends.Put{Key: r.KID.String(), Value: m.Sealed}); err != nil {
			t.Fatal(err)
		}
	}
	if s.reopen == nil {
		fresh := s.fresh(t)
		if got := contents(t, fresh); len(got) != 0 {
			t.Error("a store that forgets has records of an earlier one")
		}
		return
	}
	b = s.reopen(t, b)
	if got := contents(t, b); len(got) != len(refs) {
		t.Errorf("%d records after reopening, want %d", len(got), len(refs))
	}
	for i, r := range refs {
		sealed, err := b.Get(ctx, r.KID.String())
		if err != nil || !bytes.Equal(sealed, keys[i].Sealed) {
			t.Fatalf("record %d is another one after reopening: %v", i, err)
		}
		must(t, b, r, keys[i])
	}
	if _, err := b.Commit(ctx, rev-1, backends.Put{Key: "x", Value: []byte("x")}); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("the revision was forgotten: %v, want ErrConflict", err)
	}
	if _, err := b.Commit(ctx, rev); err != nil {
		t.Errorf("the revision was forgotten: %v", err)
	}
}
