package alg_test

import (
	"bytes"
	"errors"
	"slices"
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

// tracksOf are the tracks of one kind.
func tracksOf(kind alg.Kind) (some []*alg.Track) {
	for _, tr := range tracks() {
		if tr.Kind() == kind {
			some = append(some, tr)
		}
	}
	return some
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
		"Ed25519": "ed25519", "ml-dsa": "ml-dsa-65", "hybrid": "ed25519+ml-dsa-65",
		"dilithium2": "ml-dsa-44", "dilithium3": "ml-dsa-65", "dilithium5": "ml-dsa-87",
		"x-wing": "x25519+ml-kem-768", "xwing": "x25519+ml-kem-768",
	} {
		a, ok := alg.Lookup(name)
		if !ok || a.Name() != want {
			t.Errorf("Lookup(%q) = %v, %v", name, a, ok)
		}
	}
	seen := map[string]bool{}
	for _, want := range alg.All() {
		if a, ok := alg.Lookup(want.Name()); !ok || a != want || seen[want.Name()] {
			t.Errorf("Lookup(%q) is another", want.Name())
		}
		seen[want.Name()] = true
	}
	for _, name := range []string{
		"", " ", "ED25519", "ed25519 ", "ed25519\x00", "ml-dsa-66", "Dilithium3", "rsa", "none",
		"ml-dsa-65+ed25519", "ed25519+ed25519", "ed25519+ml-dsa", "ed448", "eddilithium2", "+", "X25519", "ml-kem-512",
		"x25519+ml-kem-1024", "ml-kem-768+x25519", "ed25519+x25519", "kyber768", "aes-128-gcm", "aes-256-cbc", "hkdf",
	} {
		if a, ok := alg.Lookup(name); ok || a != nil {
			t.Errorf("Lookup(%q) = %v", name, a.Name())
		}
	}
	for _, name := range []string{"", "Ed25519", "ml-dsa", "dilithium3", "hybrid", "ed25519+ml-dsa-65", "x-wing"} {
		if tr, ok := alg.LookupTrack(name); ok || tr != nil {
			t.Errorf("LookupTrack(%q) = %v", name, tr.Name())
		}
	}
}

// What each algorithm is, and that callers cannot change it. R-140
func TestTable(t *testing.T) {
	t.Parallel()
	type row struct {
		name, family, tracks string
		kind                 alg.Kind
	}
	want := []row{
		{"ed25519", "ed25519", "ed25519", alg.KindSign},
		{"ml-dsa-44", "ml-dsa", "ml-dsa-44", alg.KindSign},
		{"ml-dsa-65", "ml-dsa", "ml-dsa-65", alg.KindSign},
		{"ml-dsa-87", "ml-dsa", "ml-dsa-87", alg.KindSign},
		{"ed25519+ml-dsa-44", "hybrid", "ed25519 ml-dsa-44", alg.KindSign},
		{"ed25519+ml-dsa-65", "hybrid", "ed25519 ml-dsa-65", alg.KindSign},
		{"ed25519+ml-dsa-87", "hybrid", "ed25519 ml-dsa-87", alg.KindSign},
		{"x25519", "x25519", "x25519", alg.KindKEM},
		{"ml-kem-768", "ml-kem", "ml-kem-768", alg.KindKEM},
		{"ml-kem-1024", "ml-kem", "ml-kem-1024", alg.KindKEM},
		{"x25519+ml-kem-768", "hybrid", "x25519+ml-kem-768", alg.KindKEM},
		{"aes-256-gcm", "aead", "aes-256-gcm", alg.KindAEAD},
		{"chacha20-poly1305", "aead", "chacha20-poly1305", alg.KindAEAD},
		{"hkdf-sha256", "kdf", "hkdf-sha256", alg.KindKDF},
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
				if tr.Kind() != a.Kind() {
					t.Errorf("%s: a track of another kind", a.Name())
				}
			}
			if a.Name() != strings.Join(names, "+") || len(names) > 1 && a.Kind() != alg.KindSign {
				t.Errorf("%s: name or tracks", a.Name())
			}
			got = append(got, row{a.Name(), a.Family(), strings.Join(names, " "), a.Kind()})
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
	// seed, public key, expanded key, signature, encapsulated key
	sizes := map[string][5]int{
		"ed25519":           {32, 32, 64, 64, 0},
		"ml-dsa-44":         {32, 1312, 0, 2420, 0},
		"ml-dsa-65":         {32, 1952, 65700, 3309, 0},
		"ml-dsa-87":         {32, 2592, 0, 4627, 0},
		"x25519":            {32, 32, 32, 0, 32},
		"ml-kem-768":        {64, 1184, 64, 0, 1088},
		"ml-kem-1024":       {64, 1568, 64, 0, 1568},
		"x25519+ml-kem-768": {32, 1216, 32, 0, 1120},
		"aes-256-gcm":       {32, 0, 32, 0, 0},
		"chacha20-poly1305": {32, 0, 32, 0, 0},
		"hkdf-sha256":       {32, 0, 32, 0, 0},
	}
	for _, tr := range tracks() {
		want := sizes[tr.Name()]
		if want[2] == 0 {
			want[2] = tr.ExpandedSize() // of a struct of circl
		}
		if got := [5]int{tr.SeedSize(), tr.PublicSize(), tr.ExpandedSize(), tr.SignatureSize(), tr.EncSize()}; got != want {
			t.Errorf("%s: sizes %v, want %v", tr.Name(), got, want)
		}
	}
}

// what each kind serves, and that none serves what another one does,
// whether the list is asked or the track itself.
func TestAllows(t *testing.T) {
	t.Parallel()
	ops := map[alg.Kind]string{
		alg.KindSign: "sign verify", alg.KindKEM: "wrap unwrap", alg.KindAEAD: "wrap unwrap", alg.KindKDF: "derive",
	}
	for _, a := range alg.All() {
		for _, op := range []alg.Op{alg.OpSign, alg.OpVerify, alg.OpWrap, alg.OpUnwrap, alg.OpDerive, "", "sign verify", "export"} {
			want := slices.Contains(strings.Fields(ops[a.Kind()]), string(op))
			if a.Allows(op) != want {
				t.Errorf("%s allows %q: %v", a.Name(), op, !want)
			}
		}
	}
	arena := newArena(t)
	never := func([]byte) { t.Error("opened") }
	for _, tr := range tracks() {
		k := generate(t, arena, tr)
		_, sign := tr.Sign(k.expanded, nil)
		_, _, sealTo := k.public.SealTo(nil, nil, []byte("key"))
		openFrom := tr.OpenFrom(k.expanded, nil, nil, make([]byte, tr.EncSize()), make([]byte, 48), never)
		_, sealWith := tr.SealWith(k.expanded, nil, []byte("key"))
		openWith := tr.OpenWith(k.expanded, nil, make([]byte, 48), never)
		derived, derive := tr.DeriveSeed(k.expanded, arena, "info", 32)
		derived.Destroy()
		for name, c := range map[string]struct {
			err  error
			kind alg.Kind
		}{
			"sign": {sign, alg.KindSign}, "seal to": {sealTo, alg.KindKEM}, "open from": {openFrom, alg.KindKEM},
			"seal with": {sealWith, alg.KindAEAD}, "open with": {openWith, alg.KindAEAD}, "derive": {derive, alg.KindKDF},
		} {
			if errors.Is(c.err, alg.ErrKind) == (c.kind == tr.Kind()) {
				t.Errorf("%s: %s: %v", tr.Name(), name, c.err)
			}
		}
		if k.public.Verify(nil, nil) || k.public.Verify(nil, make([]byte, tr.SignatureSize())) {
			t.Errorf("%s: verifies", tr.Name())
		}
		k.expanded.Destroy()
	}
}

// Every track that signs: a generated key signs and verifies, out of locked memory, and
// nothing else verifies. R-060
func TestSignVerify(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindSign) {
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

// use does with an expanded key what its track is for.
func use(a *secret.Arena, tr *alg.Track, expanded *secret.Bytes) error {
	switch tr.Kind() {
	case alg.KindSign:
		_, err := tr.Sign(expanded, nil)
		return err
	case alg.KindKEM:
		return tr.OpenFrom(expanded, nil, nil, make([]byte, tr.EncSize()), make([]byte, 48), nil)
	case alg.KindAEAD:
		if _, err := tr.SealWith(expanded, nil, []byte("key")); err != nil {
			return err
		}
		return tr.OpenWith(expanded, nil, make([]byte, 48), nil)
	}
	_, err := tr.DeriveSeed(expanded, a, "info", 32)
	return err
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
			if n == tr.SeedSize() || n == tr.ExpandedSize() {
				t.Fatal("sizes overlap")
			}
			if _, err := tr.Expand(a, b); err == nil {
				t.Errorf("%s: expanded a seed of %d bytes", tr.Name(), n)
			}
			if err := use(a, tr, b); err == nil || errors.Is(err, alg.ErrOpen) {
				t.Errorf("%s: used %d bytes: %v", tr.Name(), n, err)
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
		slots := a.Stats().Slots
		if err := use(a, tr, k.expanded); !errors.Is(err, secret.ErrDestroyed) || a.Stats().Slots != slots {
			t.Errorf("%s: use of a destroyed key: %v", tr.Name(), err)
		}
		if _, err := tr.Public(k.expanded); !errors.Is(err, secret.ErrDestroyed) {
			t.Errorf("%s: public key of a destroyed key: %v", tr.Name(), err)
		}
		seed := fill(t, a, make([]byte, tr.SeedSize()))
		seed.Destroy()
		slots = a.Stats().Slots
		if _, err := tr.Expand(a, seed); !errors.Is(err, secret.ErrDestroyed) || a.Stats().Slots != slots {
			t.Errorf("%s: expand a destroyed seed: %v", tr.Name(), err)
		}
	}
	if _, _, err := track(t, "ml-dsa-65").Generate(small); !errors.Is(err, secret.ErrArenaFull) || small.Stats().Slots != 0 {
		t.Errorf("generate in a small arena: %v, %d slots", err, small.Stats().Slots)
	}
}

// A key whose signatures do not verify, or that does not open what was sealed
// to it, is not handed out.
func TestPairwiseConsistency(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	var broken []*alg.Track
	for _, tr := range tracksOf(alg.KindSign) {
		broken = append(broken, alg.Faulty(tr))
	}
	for _, tr := range tracksOf(alg.KindKEM) {
		broken = append(broken, alg.Faulty(tr), alg.Deaf(tr))
	}
	for _, tr := range broken {
		_, _, err := tr.Generate(a)
		if err == nil || !strings.Contains(err.Error(), "pairwise") {
			t.Errorf("%s: %v", tr.Name(), err)
		}
		if n := a.Stats().Slots; n != 0 {
			t.Errorf("%s: %d slots left", tr.Name(), n)
		}
	}
}
