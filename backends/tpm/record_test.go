package tpm

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"
)

var testLogID = [16]byte{0xa0, 15: 1}

// The format is frozen: this record was computed outside of this program.
func TestRecordVector(t *testing.T) {
	t.Parallel()
	s := State{Size: 0x0102030405060708, Closed: true}
	for i := range s.Root {
		s.Root[i] = byte(i)
	}
	const want = "524b54410103000000000000000000070102030405060708" +
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" + "9897b4d121843fbb"
	if got := hex.EncodeToString(newRecord(s, 7).encode(testLogID)); got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

// Each rule of the format is one that decode enforces, also where the check is
// right.
func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good := newRecord(testState(3), 7).encode(testLogID)
	if r, err := decode(good, testLogID); err != nil || r.state() != testState(3) || r.generation != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	for i := range good {
		for bit := range 8 {
			b := slices.Clone(good)
			b[i] ^= 1 << bit
			if _, err := decode(b, testLogID); err == nil {
				t.Errorf("byte %d bit %d: accepted", i, bit)
			}
		}
	}
	other := testLogID
	other[0] ^= 1
	if _, err := decode(good, other); err == nil {
		t.Error("another log's: accepted")
	}
	for n := range 2 * recordSize {
		if _, err := decode(make([]byte, n), testLogID); err == nil {
			t.Errorf("%d zeros: accepted", n)
		}
	}
	fresh := record{kind: kindFresh, generation: 1}.encode(testLogID)
	for _, v := range []struct {
		name string
		b    []byte
		at   int
		to   byte
	}{
		{"magic", good, 0, 'r'},
		{"version 0", good, 4, 0},
		{"version 2", good, 4, 2},
		{"kind 0", good, 5, 0},
		{"kind 4", good, 5, 4},
		{"first zero", good, 6, 1},
		{"second zero", good, 7, 1},
		{"fresh with a size", fresh, 23, 1},
		{"fresh with a root", fresh, 55, 1},
	} {
		b := slices.Clone(v.b)
		b[v.at] = v.to
		sum := check(testLogID, b[:checkOffset])
		copy(b[checkOffset:], sum[:])
		if _, err := decode(b, testLogID); err == nil {
			t.Errorf("%s: accepted", v.name)
		}
	}
}

// What is accepted encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add(newRecord(testState(3), 7).encode(testLogID))
	f.Add(record{kind: kindFresh, generation: 1}.encode(testLogID))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == recordSize { // a fuzzer cannot find the check by itself
			sum := check(testLogID, b[:checkOffset])
			b = append(slices.Clone(b[:checkOffset]), sum[:]...)
		}
		if r, err := decode(b, testLogID); err == nil && !bytes.Equal(r.encode(testLogID), b) {
			t.Errorf("%x decodes to %+v and encodes to %x", b, r, r.encode(testLogID))
		}
	})
}
