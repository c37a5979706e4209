package alg_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"pgregory.net/rapid"
)

// wrappers are the tracks that envelopes are made with.
func wrappers() []*alg.Track {
	return append(tracksOf(alg.KindKEM), tracksOf(alg.KindAEAD)...)
}

// wrap seals a data key as docs/spec/envelope.md says.
func (k keyPair) wrap(t testing.TB, tenant, kid string, aad, data []byte) []byte {
	t.Helper()
	e := alg.Envelope{KID: kid, Alg: k.track.Name()}
	bound, err := alg.EnvelopeAAD(tenant, e.KID, e.Alg, aad)
	if err != nil {
		t.Fatal(err)
	}
	if k.track.Kind() == alg.KindKEM {
		e.Enc, e.Body, err = k.public.SealTo([]byte(alg.WrapInfo), bound, data)
	} else {
		e.Body, err = k.track.SealWith(k.expanded, bound, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := alg.AppendEnvelope(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unwrap opens an envelope for a tenant, with k whatever the kid in it.
func (k keyPair) unwrap(t testing.TB, tenant string, aad, b []byte) ([]byte, error) {
	t.Helper()
	e, err := alg.ParseEnvelope(b)
	if err != nil {
		return nil, err
	}
	bound, err := alg.EnvelopeAAD(tenant, e.KID, e.Alg, aad)
	if err != nil {
		return nil, err
	}
	if k.track.Kind() == alg.KindKEM {
		return k.openFrom(t, []byte(alg.WrapInfo), bound, e.Enc, e.Body)
	}
	if len(e.Enc) != 0 {
		return nil, alg.ErrOpen
	}
	return k.openWith(t, bound, e.Body)
}

// wrong tenant, kid, version, alg and associated data, and every
// changed byte of enc and body, give the same error.
func TestEnvelope(t *testing.T) {
	t.Parallel()
	for _, tr := range wrappers() {
		t.Run(tr.Name(), func(t *testing.T) {
			t.Parallel()
			k := generate(t, newArena(t), tr)
			kid := "acme/data/" + tr.Name() + "/018f4c2e-7a3b-7c55-9d10-3f2b6a9e4d01#v3"
			data, aad := make([]byte, 32), []byte("row 7")
			rand.Read(data)
			b := k.wrap(t, "acme", kid, aad, data)
			if got, err := k.unwrap(t, "acme", aad, b); err != nil || !bytes.Equal(got, data) {
				t.Fatal(err)
			}
			e, err := alg.ParseEnvelope(b)
			if err != nil || e.KID != kid || e.Alg != tr.Name() {
				t.Fatalf("%+v, %v", e, err)
			}
			encode := func(change func(e *alg.Envelope)) []byte {
				c := e
				change(&c)
				b, err := alg.AppendEnvelope(nil, c)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			for name, open := range map[string]func() ([]byte, error){
				"tenant": func() ([]byte, error) { return k.unwrap(t, "acme2", aad, b) },
				"aad":    func() ([]byte, error) { return k.unwrap(t, "acme", []byte("row 8"), b) },
				"no aad": func() ([]byte, error) { return k.unwrap(t, "acme", nil, b) },
				"kid": func() ([]byte, error) {
					return k.unwrap(t, "acme", aad, encode(func(e *alg.Envelope) { e.KID = "x" + e.KID }))
				},
				"version": func() ([]byte, error) {
					return k.unwrap(t, "acme", aad, encode(func(e *alg.Envelope) { e.KID += "0" }))
				},
			} {
				if got, err := open(); err != alg.ErrOpen || got != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			// Where the lengths allow to pass for another algorithm's.
			for _, other := range wrappers() {
				c := alg.Envelope{KID: e.KID, Alg: other.Name(), Enc: e.Enc, Body: e.Body}
				b, err := alg.AppendEnvelope(nil, c)
				if other == tr || other.EncSize() != tr.EncSize() {
					if (err == nil) != (other == tr) {
						t.Errorf("as %s: %v", other.Name(), err)
					}
					continue
				}
				if got, err := k.unwrap(t, "acme", aad, b); err != alg.ErrOpen || got != nil {
					t.Errorf("as %s: %v", other.Name(), err)
				}
			}
			for i := range e.Enc {
				if i%16 != 0 && len(e.Enc) > 64 { // each byte in TestKEMTampered
					continue
				}
				if _, err := k.unwrap(t, "acme", aad, encode(func(e *alg.Envelope) { e.Enc = bytes.Clone(e.Enc); e.Enc[i] ^= 1 })); err != alg.ErrOpen {
					t.Errorf("enc byte %d: %v", i, err)
				}
			}
			for i := range e.Body {
				if _, err := k.unwrap(t, "acme", aad, encode(func(e *alg.Envelope) { e.Body = bytes.Clone(e.Body); e.Body[i] ^= 1 })); err != alg.ErrOpen {
					t.Errorf("body byte %d: %v", i, err)
				}
			}
			// No changed or missing byte of the whole gets past both checks.
			for i := range b {
				bad := bytes.Clone(b)
				bad[i] ^= 1
				if i < len(b)-len(e.Body)-len(e.Enc) {
					if got, err := k.unwrap(t, "acme", aad, bad); err != alg.ErrOpen && !errors.Is(err, alg.ErrEnvelope) || got != nil {
						t.Errorf("byte %d: %v", i, err)
					}
				}
				if _, err := alg.ParseEnvelope(b[:i]); !errors.Is(err, alg.ErrEnvelope) {
					t.Errorf("cut to %d bytes: %v", i, err)
				}
			}
			if _, err := alg.ParseEnvelope(append(bytes.Clone(b), 0)); !errors.Is(err, alg.ErrEnvelope) {
				t.Errorf("trailing byte: %v", err)
			}
		})
	}
}

func TestEnvelopeRoundTrip(t *testing.T) {
	t.Parallel()
	all := wrappers()
	rapid.Check(t, func(t *rapid.T) {
		tr := rapid.SampledFrom(all).Draw(t, "track")
		overhead := 16
		if tr.Kind() == alg.KindAEAD {
			overhead = 44
		}
		e := alg.Envelope{
			KID:  rapid.StringMatching(`[a-z/+]{1,40}#v[1-9][0-9]{0,4}`).Draw(t, "kid"),
			Alg:  tr.Name(),
			Body: bytes.Repeat([]byte{0xbb}, rapid.IntRange(overhead+1, overhead+alg.MaxDataKey).Draw(t, "body")),
		}
		if n := tr.EncSize(); n > 0 {
			e.Enc = bytes.Repeat([]byte{0xee}, n)
		}
		b, err := alg.AppendEnvelope([]byte("prefix"), e)
		if err != nil {
			t.Fatal(err)
		}
		b = b[len("prefix"):]
		if len(b) > alg.MaxEnvelope {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := alg.ParseEnvelope(b)
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Fatal(err)
		}
		kid, name, enc, body, ok := parseEnvelopeByHand(b)
		if !ok || kid != e.KID || name != e.Alg || !bytes.Equal(enc, e.Enc) || !bytes.Equal(body, e.Body) {
			t.Fatal("reads otherwise by hand")
		}
		clear(b)
		if !reflect.DeepEqual(got, e) {
			t.Fatal("the parsed envelope shares its input's memory")
		}
	})
}

// The limits of every field, in both directions. R-140: alg is on the list.
func TestEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	kem := alg.Envelope{KID: "k#v1", Alg: "x25519", Enc: make([]byte, 32), Body: make([]byte, 17)}
	sym := alg.Envelope{KID: "k#v1", Alg: "aes-256-gcm", Body: make([]byte, 45)}
	longest := kem
	longest.KID = strings.Repeat("k", alg.MaxKID-3) + "#v1"
	longest.Alg, longest.Enc, longest.Body = "ml-kem-1024", make([]byte, 1568), make([]byte, alg.MaxDataKey+16)
	for _, e := range []alg.Envelope{kem, sym, longest} {
		b, err := alg.AppendEnvelope(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := alg.ParseEnvelope(b); err != nil {
			t.Error(err)
		}
	}
	for name, change := range map[string]func(kem, sym *alg.Envelope){
		"no kid":        func(k, s *alg.Envelope) { k.KID, s.KID = "", "" },
		"no version":    func(k, s *alg.Envelope) { k.KID, s.KID = "k", "k" },
		"version 0":     func(k, s *alg.Envelope) { k.KID, s.KID = "k#v0", "k#v0" },
		"version 01":    func(k, s *alg.Envelope) { k.KID, s.KID = "k#v01", "k#v01" },
		"long kid":      func(k, s *alg.Envelope) { k.KID = "k" + longest.KID; s.KID = k.KID },
		"no alg":        func(k, s *alg.Envelope) { k.Alg, s.Alg = "", "" },
		"unlisted alg":  func(k, s *alg.Envelope) { k.Alg, s.Alg = "ml-kem-512", "aes-128-gcm" },
		"alias":         func(k, s *alg.Envelope) { k.Alg, k.Enc, s.Alg = "xwing", make([]byte, 1120), "aes" },
		"signing alg":   func(k, s *alg.Envelope) { k.Alg, s.Alg = "ed25519", "ed25519" },
		"deriving alg":  func(k, s *alg.Envelope) { k.Alg, s.Alg = "hkdf-sha256", "hkdf-sha256" },
		"swapped":       func(k, s *alg.Envelope) { k.Alg, s.Alg = s.Alg, k.Alg },
		"enc":           func(k, s *alg.Envelope) { k.Enc, s.Enc = nil, make([]byte, 1) },
		"short or long": func(k, s *alg.Envelope) { k.Enc, s.Enc = make([]byte, 31), make([]byte, 32) },
		"no body":       func(k, s *alg.Envelope) { k.Body, s.Body = nil, nil },
		"empty key":     func(k, s *alg.Envelope) { k.Body, s.Body = make([]byte, 16), make([]byte, 44) },
		"long key": func(k, s *alg.Envelope) {
			k.Body, s.Body = make([]byte, alg.MaxDataKey+17), make([]byte, alg.MaxDataKey+45)
		},
	} {
		k, s := kem, sym
		change(&k, &s)
		for _, e := range []alg.Envelope{k, s} {
			if b, err := alg.AppendEnvelope([]byte("x"), e); !errors.Is(err, alg.ErrEnvelope) || string(b) != "x" {
				t.Errorf("%s of %s: %v", name, e.Alg, err)
			}
			if _, err := alg.ParseEnvelope(encodeEnvelope(e)); !errors.Is(err, alg.ErrEnvelope) {
				t.Errorf("%s of %s: parsed: %v", name, e.Alg, err)
			}
		}
	}
	good := encodeEnvelope(sym)
	body := len(good) - len(sym.Body) - 4
	for name, b := range map[string][]byte{
		"empty":            {},
		"version 0":        append([]byte{0}, good[1:]...),
		"version 2":        append([]byte{2}, good[1:]...),
		"trailing byte":    append(bytes.Clone(good), 0),
		"body too short":   binaryAt(good, body, uint32(len(sym.Body)-1)),
		"body too long":    binaryAt(good, body, uint32(len(sym.Body)+1)),
		"body of 2^32-1":   binaryAt(good, body, 1<<32-1),
		"body of 2^31":     binaryAt(good, body, 1<<31),
		"beyond the limit": append(bytes.Clone(good), make([]byte, alg.MaxEnvelope)...),
	} {
		if e, err := alg.ParseEnvelope(b); !errors.Is(err, alg.ErrEnvelope) || !reflect.DeepEqual(e, alg.Envelope{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func binaryAt(b []byte, at int, v uint32) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint32(b[at:], v)
	return b
}

// encodeEnvelope encodes anything, also what AppendEnvelope refuses.
func encodeEnvelope(e alg.Envelope) []byte {
	b := []byte{1}
	for _, f := range [][]byte{[]byte(e.KID), []byte(e.Alg), e.Enc} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(e.Body))), e.Body...)
}

// Every field is bound, at its own place, and out of range there is none.
func TestEnvelopeAAD(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, in := range [][4]string{
		{"acme", "acme/p/a/u#v1", "x25519", "aad"},
		{"acme2", "acme/p/a/u#v1", "x25519", "aad"},
		{"acme", "acme/p/a/u#v2", "x25519", "aad"},
		{"acme", "acme/p/a/u#v1", "ml-kem-768", "aad"},
		{"acme", "acme/p/a/u#v1", "x25519", "aad2"},
		{"acme", "acme/p/a/u#v1", "x25519", ""},
	} {
		b, err := alg.EnvelopeAAD(in[0], in[1], in[2], []byte(in[3]))
		if err != nil || !bytes.Equal(b, envelopeAADByHand(in[0], in[1], in[2], []byte(in[3]))) {
			t.Errorf("%v: %x, %v", in, b, err)
		}
		if seen[string(b)] {
			t.Errorf("%v: as another", in)
		}
		seen[string(b)] = true
	}
	if _, err := alg.EnvelopeAAD("t", "k#v1", "x25519", make([]byte, alg.MaxAAD)); err != nil {
		t.Error(err)
	}
	for _, in := range [][4]string{
		{"", "k#v1", "x25519", ""}, {"a::b", "k#v1", "x25519", ""}, {"a/b", "k#v1", "x25519", ""},
		{"t", "k", "x25519", ""}, {"t", "", "x25519", ""},
		{"t", "k#v1", "xwing", ""}, {"t", "k#v1", "ed25519", ""}, {"t", "k#v1", "", ""},
		{"t", "k#v1", "x25519", strings.Repeat("a", alg.MaxAAD+1)},
	} {
		if b, err := alg.EnvelopeAAD(in[0], in[1], in[2], []byte(in[3])); !errors.Is(err, alg.ErrEnvelope) || b != nil {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

// What parses is the one encoding of what it means, and reads the same to a
// reader written from the description. R-403
func FuzzParseEnvelope(f *testing.F) {
	for _, e := range []alg.Envelope{
		{KID: "k#v1", Alg: "x25519", Enc: make([]byte, 32), Body: make([]byte, 48)},
		{KID: "t/p/aes-256-gcm/u#v18", Alg: "aes-256-gcm", Body: make([]byte, 76)},
		{KID: "k#v1", Alg: "chacha20-poly1305", Enc: []byte{1}, Body: make([]byte, 76)},
		{KID: "k#v1", Alg: "x25519+ml-kem-768", Enc: make([]byte, 1120), Body: make([]byte, 17)},
	} {
		f.Add(encodeEnvelope(e))
	}
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := alg.ParseEnvelope(b)
		if err != nil {
			return
		}
		if again, err := alg.AppendEnvelope(nil, e); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x parses, but encodes to %x, %v", b, again, err)
		}
		kid, name, enc, body, ok := parseEnvelopeByHand(b)
		if !ok || kid != e.KID || name != e.Alg || !bytes.Equal(enc, e.Enc) || !bytes.Equal(body, e.Body) {
			t.Errorf("%x reads otherwise by hand", b)
		}
	})
}
