package alg_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

func newArena(t testing.TB) *secret.Arena {
	t.Helper()
	a, err := secret.NewArena(1 << 20)
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

func track(t testing.TB, name string) *alg.Track {
	t.Helper()
	tr, ok := alg.LookupTrack(name)
	if !ok {
		t.Fatalf("no track %q", name)
	}
	return tr
}

// tracks are all tracks of all algorithms.
func tracks() (all []*alg.Track) {
	seen := map[*alg.Track]bool{}
	for _, a := range alg.All() {
		for _, tr := range a.Tracks() {
			if !seen[tr] {
				seen[tr] = true
				all = append(all, tr)
			}
		}
	}
	return all
}

// keyPair is an expanded private key and its parsed public key.
type keyPair struct {
	track    *alg.Track
	expanded *secret.Bytes
	public   alg.Public
}

func newPair(t testing.TB, a *secret.Arena, tr *alg.Track, seed *secret.Bytes) keyPair {
	t.Helper()
	expanded, err := tr.Expand(a, seed)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tr.Public(expanded)
	if err != nil {
		t.Fatal(err)
	}
	public, err := tr.ParsePublic(raw)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{tr, expanded, public}
}

func generate(t testing.TB, a *secret.Arena, tr *alg.Track) keyPair {
	t.Helper()
	seed, _, err := tr.Generate(a)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, a, tr, seed)
}

func (k keyPair) sign(t testing.TB, msg []byte) []byte {
	t.Helper()
	sig, err := k.track.Sign(k.expanded, msg)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// the list is closed.
func TestLookup(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"ed25519": "ed25519", "Ed25519": "ed25519",
		"ml-dsa-65": "ml-dsa-65", "ml-dsa": "ml-dsa-65", "dilithium3": "ml-dsa-65",
		"ed25519+ml-dsa-65": "ed25519+ml-dsa-65", "hybrid": "ed25519+ml-dsa-65",
	} {
		a, ok := alg.Lookup(name)
		if !ok || a.Name() != want {
			t.Errorf("Lookup(%q) = %v, %v", name, a, ok)
		}
	}
	for _, name := range []string{
		"", " ", "ED25519", "ed25519 ", "ed25519\x00", "ml-dsa-44", "ml-dsa-87", "dilithium2", "Dilithium3", "rsa", "none",
		"ml-dsa-65+ed25519", "ed25519+ed25519", "ed25519+ml-dsa", "ed448", "eddilithium2", "+", "x25519",
	} {
		if a, ok := alg.Lookup(name); ok || a != nil {
			t.Errorf("Lookup(%q) = %v", name, a.Name())
		}
	}
	for _, name := range []string{"", "Ed25519", "ml-dsa", "dilithium3", "hybrid", "ed25519+ml-dsa-65"} {
		if tr, ok := alg.LookupTrack(name); ok || tr != nil {
			t.Errorf("LookupTrack(%q) = %v", name, tr.Name())
		}
	}
}

// What each algorithm is, and that callers cannot change it. R-140
func TestTable(t *testing.T) {
	t.Parallel()
	type row struct{ name, family, tracks string }
	want := []row{
		{"ed25519", "ed25519", "ed25519"},
		{"ml-dsa-65", "ml-dsa", "ml-dsa-65"},
		{"ed25519+ml-dsa-65", "hybrid", "ed25519 ml-dsa-65"},
	}
	for range 2 {
		var got []row
		for _, a := range alg.All() {
			var names []string
			last := alg.Class(0)
			for _, tr := range a.Tracks() {
				names = append(names, tr.Name())
				if tr.Class() <= last {
					t.Errorf("%s: tracks are not one of each class, classical first", a.Name())
				}
				last = tr.Class()
			}
			if a.Name() != strings.Join(names, "+") || a.Kind() != alg.KindSign {
				t.Errorf("%s: name or kind", a.Name())
			}
			got = append(got, row{a.Name(), a.Family(), strings.Join(names, " ")})
			a.Tracks()[0] = nil
		}
		if len(got) != len(want) {
			t.Fatalf("%d algorithms, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("row %d = %v, want %v", i, got[i], want[i])
			}
		}
		alg.All()[0] = nil
	}
	for name, want := range map[string][4]int{"ed25519": {32, 32, 64, 64}, "ml-dsa-65": {32, 1952, 3309, 65700}} {
		tr := track(t, name)
		if got := [4]int{tr.SeedSize(), tr.PublicSize(), tr.SignatureSize(), tr.ExpandedSize()}; got != want {
			t.Errorf("%s: sizes %v, want %v", name, got, want)
		}
	}
}

// Every track: a generated key signs and verifies, out of locked memory, and
// nothing else verifies. R-060
func TestSignVerify(t *testing.T) {
	t.Parallel()
	for _, tr := range tracks() {
		t.Run(tr.Name(), func(t *testing.T) {
			t.Parallel()
			a := newArena(t)
			seed, public, err := tr.Generate(a)
			if err != nil {
				t.Fatal(err)
			}
			if seed.Len() != tr.SeedSize() || len(public) != tr.PublicSize() || a.Stats().Slots != 1 {
				t.Errorf("seed of %d bytes, public key of %d, %d slots", seed.Len(), len(public), a.Stats().Slots)
			}
			k, other := newPair(t, a, tr, seed), generate(t, a, tr)
			if !bytes.Equal(k.public.Bytes(), public) || k.public.Track() != tr {
				t.Error("public keys of Generate and Public differ")
			}
			if bytes.Equal(other.public.Bytes(), public) {
				t.Error("two generated keys agree")
			}
			for _, msg := range [][]byte{nil, []byte("m"), make([]byte, 100_000)} {
				sig := k.sign(t, msg)
				if len(sig) != tr.SignatureSize() {
					t.Errorf("signature of %d bytes", len(sig))
				}
				if !k.public.Verify(msg, sig) {
					t.Errorf("message of %d bytes: signature does not verify", len(msg))
				}
				if other.public.Verify(msg, sig) {
					t.Error("verifies under another key")
				}
				if k.public.Verify(append(bytes.Clone(msg), 0), sig) {
					t.Error("verifies for another message")
				}
			}
			msg := []byte("message")
			sig := k.sign(t, msg)
			step := max(1, len(sig)/97)
			for i := 0; i < len(sig); i += step {
				bad := bytes.Clone(sig)
				bad[i] ^= 1 << (i % 8)
				if k.public.Verify(msg, bad) {
					t.Errorf("byte %d of the signature does not count", i)
				}
			}
			for _, bad := range [][]byte{nil, {}, sig[:len(sig)-1], append(bytes.Clone(sig), 0), make([]byte, len(sig)), bytes.Repeat([]byte{0xff}, len(sig))} {
				if k.public.Verify(msg, bad) {
					t.Errorf("signature of %d bytes verifies", len(bad))
				}
			}
			for _, raw := range [][]byte{nil, {}, public[1:], append(bytes.Clone(public), 0)} {
				if p, err := tr.ParsePublic(raw); !errors.Is(err, alg.ErrPublicKey) || p.Verify(msg, sig) {
					t.Errorf("public key of %d bytes: %v", len(raw), err)
				}
			}
			if (alg.Public{}).Verify(msg, sig) {
				t.Error("the zero public key verifies")
			}
		})
	}
}

// Keys of the wrong size, destroyed keys and full arenas are errors, and an
// operation that fails leaves nothing in the arena.
func TestKeyErrors(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	small, err := secret.NewArena(1)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for _, tr := range tracks() {
		k := generate(t, a, tr)
		for _, n := range []int{1, tr.SeedSize() - 1, tr.SeedSize() + 1, tr.ExpandedSize() - 1, tr.ExpandedSize() + 1} {
			b := fill(t, a, make([]byte, n))
			slots := a.Stats().Slots
			if _, err := tr.Expand(a, b); err == nil {
				t.Errorf("%s: expanded a seed of %d bytes", tr.Name(), n)
			}
			if _, err := tr.Sign(b, nil); err == nil {
				t.Errorf("%s: signed with %d bytes", tr.Name(), n)
			}
			if _, err := tr.Public(b); err == nil {
				t.Errorf("%s: public key of %d bytes", tr.Name(), n)
			}
			if a.Stats().Slots != slots {
				t.Errorf("%s: a failed operation kept a slot", tr.Name())
			}
			b.Destroy()
		}
		k.expanded.Destroy()
		if _, err := tr.Sign(k.expanded, nil); !errors.Is(err, secret.ErrDestroyed) {
			t.Errorf("%s: sign with a destroyed key: %v", tr.Name(), err)
		}
		if _, err := tr.Public(k.expanded); !errors.Is(err, secret.ErrDestroyed) {
			t.Errorf("%s: public key of a destroyed key: %v", tr.Name(), err)
		}
		seed := fill(t, a, make([]byte, tr.SeedSize()))
		seed.Destroy()
		slots := a.Stats().Slots
		if _, err := tr.Expand(a, seed); !errors.Is(err, secret.ErrDestroyed) || a.Stats().Slots != slots {
			t.Errorf("%s: expand a destroyed seed: %v", tr.Name(), err)
		}
	}
	if _, _, err := track(t, "ml-dsa-65").Generate(small); !errors.Is(err, secret.ErrArenaFull) || small.Stats().Slots != 0 {
		t.Errorf("generate in a small arena: %v, %d slots", err, small.Stats().Slots)
	}
}

// A key whose signatures do not verify is not handed out.
func TestPairwiseConsistency(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for _, tr := range tracks() {
		_, _, err := alg.Faulty(tr).Generate(a)
		if err == nil || !strings.Contains(err.Error(), "pairwise") {
			t.Errorf("%s: %v", tr.Name(), err)
		}
		if n := a.Stats().Slots; n != 0 {
			t.Errorf("%s: %d slots left", tr.Name(), n)
		}
	}
}
