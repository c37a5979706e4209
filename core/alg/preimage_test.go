package alg_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"pgregory.net/rapid"
)

// parsePreimage reads a preimage back as docs/spec/preimage.md describes it. It
// is written from that page, not from the code.
func parsePreimage(b []byte) (s alg.Statement, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte("ron-kms/sign/v1\x00"))
	if !ok {
		return s, false
	}
	var fields [3][]byte
	for i := range fields {
		if len(b) < 2 {
			return s, false
		}
		n := int(b[0])<<8 | int(b[1])
		if b = b[2:]; len(b) < n {
			return s, false
		}
		fields[i], b = b[:n], b[n:]
	}
	if len(b) != 8+8+32 {
		return s, false
	}
	s.Suite, s.KID, s.Context = string(fields[0]), string(fields[1]), fields[2]
	s.NotBefore, s.NotAfter = int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:]))
	s.Digest = [32]byte(b[16:])
	return s, true
}

func sameStatement(a, b alg.Statement) bool {
	return a.Suite == b.Suite && a.KID == b.KID && bytes.Equal(a.Context, b.Context) &&
		a.NotBefore == b.NotBefore && a.NotAfter == b.NotAfter && a.Digest == b.Digest
}

func drawStatement(t *rapid.T) alg.Statement {
	s := alg.Statement{
		Suite: rapid.SampledFrom([]string{"ed25519", "ml-dsa-44", "ml-dsa-65", "ed25519+ml-dsa-65", "ed25519+ml-dsa-87"}).Draw(t, "suite"),
		KID: rapid.StringMatching(`[a-z/:.]{1,40}`).Draw(t, "kid") + "#v" +
			rapid.StringMatching(`[1-9][0-9]{0,5}`).Draw(t, "version"),
		Context:   rapid.SliceOfN(rapid.Byte(), 0, alg.MaxContext).Draw(t, "context"),
		NotBefore: rapid.Int64Min(0).Draw(t, "not before"),
		Digest:    [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest")),
	}
	if rapid.Bool().Draw(t, "bounded") {
		s.NotAfter = rapid.Int64Min(s.NotBefore).Draw(t, "not after")
	}
	return s
}

// D-1: the statement can be read back from its preimage, so no two statements
// share one.
func TestPreimageIsInjective(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawStatement(t)
		b, err := s.AppendPreimage([]byte("prefix"))
		if err != nil {
			t.Fatal(err)
		}
		b, ok := bytes.CutPrefix(b, []byte("prefix"))
		if !ok {
			t.Fatal("dst was not kept")
		}
		if got, ok := parsePreimage(b); !ok || !sameStatement(got, s) {
			t.Fatalf("read back %+v from %x", got, b)
		}
	})
}

// D-1: each field is bound.
func TestPreimageBindsEveryField(t *testing.T) {
	t.Parallel()
	base := alg.Statement{Suite: "ed25519", KID: "t/p/ed25519/u#v1", Context: []byte("c"), NotBefore: 1, NotAfter: 2}
	seen := map[string]string{}
	for name, change := range map[string]func(*alg.Statement){
		"none":       func(*alg.Statement) {},
		"suite":      func(s *alg.Statement) { s.Suite = "ed25519+ml-dsa-65" },
		"kid":        func(s *alg.Statement) { s.KID = "t/p/ed25519/w#v1" },
		"version":    func(s *alg.Statement) { s.KID = "t/p/ed25519/u#v2" },
		"context":    func(s *alg.Statement) { s.Context = []byte("d") },
		"no context": func(s *alg.Statement) { s.Context = nil },
		"not before": func(s *alg.Statement) { s.NotBefore = 0 },
		"not after":  func(s *alg.Statement) { s.NotAfter = 0 },
		"digest":     func(s *alg.Statement) { s.Digest[31] = 1 },
	} {
		s := base
		change(&s)
		b, err := s.AppendPreimage(nil)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(b)]; ok {
			t.Errorf("%s and %s have the same preimage", name, other)
		}
		seen[string(b)] = name
	}
	empty := base
	empty.Context = []byte{}
	b, err := empty.AppendPreimage(nil)
	if err != nil || seen[string(b)] != "no context" {
		t.Errorf("empty and nil context differ: %v", err)
	}
}

// R-140 for the suite; and the limits of the other fields.
func TestPreimageRefuses(t *testing.T) {
	t.Parallel()
	valid := alg.Statement{Suite: "ed25519", KID: "k#v1", Context: make([]byte, alg.MaxContext), NotBefore: 5, NotAfter: 5}
	if _, err := valid.AppendPreimage(nil); err != nil {
		t.Fatal(err)
	}
	longest := strings.Repeat("k", alg.MaxKID-len("#v18446744073709551615")) + "#v18446744073709551615"
	long := valid
	if long.KID = longest; len(long.KID) != alg.MaxKID {
		t.Fatal("the longest kid is not")
	}
	if _, err := long.AppendPreimage(nil); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*alg.Statement){
		"no suite":           func(s *alg.Statement) { s.Suite = "" },
		"unlisted suite":     func(s *alg.Statement) { s.Suite = "ml-dsa-66" },
		"suite that wraps":   func(s *alg.Statement) { s.Suite = "x25519" },
		"suite that derives": func(s *alg.Statement) { s.Suite = "hkdf-sha256" },
		"alias of suite":     func(s *alg.Statement) { s.Suite = "hybrid" },
		"no kid":             func(s *alg.Statement) { s.KID = "" },
		"no version":         func(s *alg.Statement) { s.KID = "k" },
		"empty version":      func(s *alg.Statement) { s.KID = "k#v" },
		"version 0":          func(s *alg.Statement) { s.KID = "k#v0" },
		"leading zero":       func(s *alg.Statement) { s.KID = "k#v01" },
		"signed version":     func(s *alg.Statement) { s.KID = "k#v+1" },
		"hex version":        func(s *alg.Statement) { s.KID = "k#v0x1" },
		"spaced version":     func(s *alg.Statement) { s.KID = "k#v1 " },
		"huge version":       func(s *alg.Statement) { s.KID = "k#v18446744073709551616" },
		"two versions":       func(s *alg.Statement) { s.KID = "k#v1#v2" },
		"stray #":            func(s *alg.Statement) { s.KID = "k#w#v2" },
		"version alone":      func(s *alg.Statement) { s.KID = "#v1" },
		"long kid":           func(s *alg.Statement) { s.KID = "k" + longest },
		"long context":       func(s *alg.Statement) { s.Context = make([]byte, alg.MaxContext+1) },
		"negative before":    func(s *alg.Statement) { s.NotBefore = -1 },
		"negative after":     func(s *alg.Statement) { s.NotBefore, s.NotAfter = 0, -1 },
		"empty window":       func(s *alg.Statement) { s.NotAfter = 4 },
	} {
		s := valid
		change(&s)
		if b, err := s.AppendPreimage([]byte("x")); !errors.Is(err, alg.ErrStatement) || string(b) != "x" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func FuzzPreimage(f *testing.F) {
	f.Add("ed25519", "t/p/ed25519/u#v1", []byte(nil), int64(0), int64(0), []byte("digest"))
	f.Add("hybrid", "k#v1", []byte("context"), int64(1), int64(2), []byte(nil))
	f.Fuzz(func(t *testing.T, suite, kid string, context []byte, before, after int64, digest []byte) {
		s := alg.Statement{Suite: suite, KID: kid, Context: context, NotBefore: before, NotAfter: after}
		copy(s.Digest[:], digest)
		b, err := s.AppendPreimage(nil)
		if err != nil {
			if len(b) != 0 {
				t.Error("bytes with an error")
			}
			return
		}
		if got, ok := parsePreimage(b); !ok || !sameStatement(got, s) {
			t.Errorf("read back %+v", got)
		}
	})
}
