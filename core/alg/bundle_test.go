package alg_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"pgregory.net/rapid"
)

func TestBundleRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sigs := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) alg.Signature {
			return alg.Signature{
				KID:   rapid.StringMatching(`[a-z/]{1,9}#v[1-9]`).Draw(t, "kid"),
				Alg:   rapid.SampledFrom([]string{"ed25519", "ml-dsa-65", "later-1"}).Draw(t, "alg"),
				Value: rapid.SliceOfN(rapid.Byte(), 1, 80).Draw(t, "value"),
			}
		}), 1, alg.MaxSignatures, func(s alg.Signature) string { return s.KID + s.Alg }).Draw(t, "sigs")
		b, err := alg.AppendBundle([]byte("prefix"), sigs)
		if err != nil {
			t.Fatal(err)
		}
		b = b[len("prefix"):]
		got, err := alg.ParseBundle(b)
		if err != nil || !reflect.DeepEqual(got, sigs) {
			t.Fatalf("%v, %v", got, err)
		}
		for i := range b { // no reference to b
			b[i] = 0xee
		}
		if !reflect.DeepEqual(got, sigs) {
			t.Fatal("the parsed bundle shares its input's memory")
		}
	})
}

// R-062, D-3: duplicates; and everything else that has no encoding.
func TestBundleRefuses(t *testing.T) {
	t.Parallel()
	sig := func(kid, name string, n int) alg.Signature {
		return alg.Signature{KID: kid, Alg: name, Value: make([]byte, n)}
	}
	many := func(n, size int) (sigs []alg.Signature) {
		for i := range n {
			sigs = append(sigs, sig(strings.Repeat("k", i+1)+"#v1", "ml-dsa-65", size))
		}
		return sigs
	}
	for name, sigs := range map[string][]alg.Signature{
		"none":           nil,
		"17":             many(17, 1),
		"too long":       many(16, 4096),
		"huge value":     {sig("k#v1", "ed25519", 1<<16)},
		"duplicate":      {sig("k#v1", "ed25519", 64), sig("k#v2", "ed25519", 64), sig("k#v1", "ed25519", 63)},
		"no kid":         {sig("", "ed25519", 64)},
		"no version":     {sig("k", "ed25519", 64)},
		"no alg":         {sig("k#v1", "", 64)},
		"alg upper case": {sig("k#v1", "Ed25519", 64)},
		"alg of hybrid":  {sig("k#v1", "ed25519+ml-dsa-65", 64)},
		"long alg":       {sig("k#v1", strings.Repeat("a", 65), 64)},
		"empty value":    {sig("k#v1", "ed25519", 0)},
	} {
		if b, err := alg.AppendBundle([]byte("x"), sigs); !errors.Is(err, alg.ErrBundle) || string(b) != "x" {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for name, sigs := range map[string][]alg.Signature{
		"16 of ML-DSA":        many(16, 3309),
		"same kid, other alg": {sig("k#v1", "ed25519", 64), sig("k#v1", "ml-dsa-65", 64)},
		"wrong size":          {sig("k#v1", "ed25519", 1)},
	} {
		b, err := alg.AppendBundle(nil, sigs)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := alg.ParseBundle(b); err != nil {
			t.Errorf("%s: parse: %v", name, err)
		}
	}
}

func TestParseBundleRefuses(t *testing.T) {
	t.Parallel()
	entry := "\x00\x04k#v1\x00\x07ed25519\x00\x01s"
	second := "\x00\x04k#v2\x00\x07ed25519\x00\x01s"
	good := "\x01\x01" + entry
	if _, err := alg.ParseBundle([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if _, err := alg.ParseBundle([]byte("\x01\x02" + entry + second)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":          "",
		"version 0":      "\x00\x01" + entry,
		"version 2":      "\x02\x01" + entry,
		"count 0":        "\x01\x00",
		"count 0, entry": "\x01\x00" + entry,
		"count 2, one":   "\x01\x02" + entry,
		"count 1, two":   "\x01\x01" + entry + second,
		"count 17":       "\x01\x11" + strings.Repeat(entry, 17),
		"duplicate":      "\x01\x02" + entry + entry,
		"trailing byte":  good + "\x00",
		"long length":    "\x01\x01\xff\xffk#v1\x00\x07ed25519\x00\x01s",
		"empty value":    "\x01\x01\x00\x04k#v1\x00\x07ed25519\x00\x00",
		"bad kid":        "\x01\x01\x00\x04k#x1\x00\x07ed25519\x00\x01s",
		"bad alg":        "\x01\x01\x00\x04k#v1\x00\x07eD25519\x00\x01s",
		"huge value":     "\x01\x01\x00\x04k#v1\x00\x07ed25519\xff\xff" + strings.Repeat("s", 65535),
		"too long": "\x01\x02\x00\x04k#v1\x00\x07ed25519\x80\x00" + strings.Repeat("s", 0x8000) +
			"\x00\x04k#v2\x00\x07ed25519\x80\x00" + strings.Repeat("s", 0x8000),
	} {
		if sigs, err := alg.ParseBundle([]byte(b)); !errors.Is(err, alg.ErrBundle) || sigs != nil {
			t.Errorf("%s: %v, %v", name, sigs, err)
		}
	}
	for i := range len(good) {
		if _, err := alg.ParseBundle([]byte(good[:i])); !errors.Is(err, alg.ErrBundle) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

// What parses is the one encoding of what it means.
func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("\x01\x01\x00\x04k#v1\x00\x07ed25519\x00\x01s"))
	f.Add([]byte("\x01\x02\x00\x04k#v1\x00\x07ed25519\x00\x01s\x00\x04k#v1\x00\x09ml-dsa-65\x00\x01s"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sigs, err := alg.ParseBundle(b)
		if err != nil {
			return
		}
		again, err := alg.AppendBundle(nil, sigs)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x parses, but encodes to %x, %v", b, again, err)
		}
	})
}
