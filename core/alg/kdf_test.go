package alg_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
	"pgregory.net/rapid"
)

// RFC 5869 appendix A, all cases of SHA-256, through the function that derives.
func TestRFC5869(t *testing.T) {
	t.Parallel()
	ascending := func(from byte, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = from + byte(i)
		}
		return b
	}
	for i, v := range []struct {
		key, salt, info []byte
		okm             string
	}{
		{bytes.Repeat([]byte{0x0b}, 22), ascending(0, 13), ascending(0xf0, 10), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
		{ascending(0, 80), ascending(0x60, 80), ascending(0xb0, 80), "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"},
		{bytes.Repeat([]byte{0x0b}, 22), nil, nil, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"},
	} {
		got, err := alg.DeriveHKDF(v.key, v.salt, string(v.info), len(v.okm)/2)
		if err != nil || hex.EncodeToString(got) != v.okm {
			t.Errorf("case %d: %x, %v", i+1, got, err)
		}
	}
}

func reveal(t *testing.T, b *secret.Bytes) (p []byte) {
	t.Helper()
	if err := b.Use(func(q []byte) { p = bytes.Clone(q) }); err != nil {
		t.Fatal(err)
	}
	return p
}

// What is derived is HKDF-SHA256 with the published salt, of the length asked
// for, and another for every key and info. R-214, D-18
func TestDeriveSeed(t *testing.T) {
	t.Parallel()
	salt := unhex(t, "1b47fdbc77d36c5e30409ca31c1aee0335c06365685ec2db32ff3009175377d0")
	if sum := sha256.Sum256([]byte("ron-kms/derive/v1")); !bytes.Equal(sum[:], salt) {
		t.Fatal("the published salt is not the hash")
	}
	a, tr := newArena(t), track(t, "hkdf-sha256")
	key := bytes.Repeat([]byte{7}, 32)
	k, other := newPair(t, a, tr, fill(t, a, key)), generate(t, a, tr)
	seen := map[string]string{}
	for _, n := range []int{1, 32, 64, alg.MaxDerived} {
		for _, info := range []string{"a", "b", "a\x00", "ron-kms::t::p::c"} {
			got, err := tr.DeriveSeed(k.expanded, a, info, n)
			if err != nil {
				t.Fatal(err)
			}
			want, err := hkdf.Key(sha256.New, key, salt, info, n)
			if err != nil || !bytes.Equal(reveal(t, got), want) {
				t.Errorf("%d bytes for %q: %v", n, info, err)
			}
			if n == 32 {
				seen[string(want)] = info
				foreign, err := tr.DeriveSeed(other.expanded, a, info, n)
				if err != nil || foreign.Equal(got) {
					t.Errorf("another key derives the same: %v", err)
				}
			}
			got.Destroy()
		}
	}
	if len(seen) != 4 {
		t.Error("two infos derive the same")
	}
	slots := a.Stats().Slots
	for name, derive := range map[string]func() (*secret.Bytes, error){
		"no info":   func() (*secret.Bytes, error) { return tr.DeriveSeed(k.expanded, a, "", 32) },
		"0 bytes":   func() (*secret.Bytes, error) { return tr.DeriveSeed(k.expanded, a, "i", 0) },
		"-1 bytes":  func() (*secret.Bytes, error) { return tr.DeriveSeed(k.expanded, a, "i", -1) },
		"too many":  func() (*secret.Bytes, error) { return tr.DeriveSeed(k.expanded, a, "i", alg.MaxDerived+1) },
		"short key": func() (*secret.Bytes, error) { return tr.DeriveSeed(fill(t, a, key[1:]), a, "i", 32) },
	} {
		if b, err := derive(); err == nil || b != nil {
			t.Errorf("%s: derived", name)
		} else if name != "short key" && !errors.Is(err, alg.ErrDerive) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := a.Stats().Slots; got != slots+1 { // the short key
		t.Errorf("%d slots left", got-slots)
	}
}

// R-256, D-18: the info is exact, and nothing but labels makes one.
func TestDeriveInfo(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 255)
	for _, v := range [][4]string{
		{"acme", "release", "ci", "ron-kms::acme::release::ci"},
		{"a:b", "c:d", "e:f", "ron-kms::a:b::c:d::e:f"},
		{"0", "svc-registry", "v1.2_x:y", "ron-kms::0::svc-registry::v1.2_x:y"},
		{long, long, long, "ron-kms::" + long + "::" + long + "::" + long},
	} {
		if got, err := alg.DeriveInfo(v[0], v[1], v[2]); err != nil || got != v[3] {
			t.Errorf("%q, %v", got, err)
		}
	}
	bad := []string{
		"", "::", "a::b", "a:", ":a", "-a", ".a", "_a", " a", "a ", "a b", "a/b", "a#v1", "é", "a\x00", "a\n", long + "x", "a:::b", "*",
	}
	for _, label := range bad {
		for i := range 3 {
			in := []string{"t", "p", "c"}
			in[i] = label
			if got, err := alg.DeriveInfo(in[0], in[1], in[2]); !errors.Is(err, alg.ErrDerive) || got != "" {
				t.Errorf("%q: %q, %v", in, got, err)
			}
		}
	}
}

// the three labels can be read back from the info, so no two triples
// share one.
func TestDeriveInfoInjective(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9:._-]{0,6}`)
		in := []string{label.Draw(t, "tenant"), label.Draw(t, "purpose"), label.Draw(t, "context")}
		info, err := alg.DeriveInfo(in[0], in[1], in[2])
		if err != nil {
			return
		}
		if got := strings.Split(info, "::"); !slices.Equal(got, append([]string{"ron-kms"}, in...)) {
			t.Fatalf("%q reads as %q", info, got)
		}
	})
}
