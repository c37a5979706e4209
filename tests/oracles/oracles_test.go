package oracles

import (
	"encoding/hex"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// hexBytes is a string of hex digits in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

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

func track(t testing.TB, name string) *alg.Track {
	t.Helper()
	tr, ok := alg.LookupTrack(name)
	if !ok {
		t.Fatalf("no track %q", name)
	}
	return tr
}

// fill puts p into locked memory.
func fill(a *secret.Arena, p []byte) (*secret.Bytes, error) {
	b, err := a.New(len(p))
	if err != nil {
		return nil, err
	}
	return b, b.Use(func(q []byte) { copy(q, p) })
}

// expand makes the private key of a seed. The caller destroys it.
func expand(a *secret.Arena, tr *alg.Track, seed []byte) (*secret.Bytes, error) {
	s, err := fill(a, seed)
	if err != nil {
		return nil, err
	}
	defer s.Destroy()
	return tr.Expand(a, s)
}

// A pair is a private key of core/alg with its public key.
type pair struct {
	track   *alg.Track
	private *secret.Bytes
	public  alg.Public
}

// newPair makes the pair of a seed. The caller destroys the private key.
func newPair(t testing.TB, a *secret.Arena, tr *alg.Track, seed []byte) pair {
	t.Helper()
	private, err := expand(a, tr, seed)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tr.Public(private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := tr.ParsePublic(raw)
	if err != nil {
		t.Fatal(err)
	}
	return pair{tr, private, public}
}

func (p pair) sign(t testing.TB, scheme alg.Scheme, msg []byte) []byte {
	t.Helper()
	sig, err := p.track.SignScheme(p.private, scheme, msg)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}
