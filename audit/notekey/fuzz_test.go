package notekey

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// What parses has one form. R-271.
func FuzzParseVKey(f *testing.F) {
	f.Add(edSigner(f, logName, 1).Verifier().String())
	f.Add(mlSigner(f, logName, 1).Verifier().String())
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVKey(text)
		if err == nil && v.String() != text {
			t.Errorf("%q comes back as %q", text, v)
		}
	})
}

func FuzzParseSet(f *testing.F) {
	k := newKeyring(f, logName, 1)
	f.Add(k.set.String())
	f.Add(k.ml().Verifier().String() + "\n" + k.ed().Verifier().String() + "\n")
	f.Add(" ")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSet(text)
		if err != nil {
			return
		}
		again, err := ParseSet(s.String())
		if err != nil || again.String() != s.String() || strings.ContainsAny(s.String(), "\n\r") {
			t.Errorf("%q is no canonical set: %v", s, err)
		}
	})
}

func FuzzParseNote(f *testing.F) {
	k := newKeyring(f, logName, 1)
	f.Add(mustSign(f, checkpointText(logName, 7), k.signers...))
	f.Add(mustSign(f, checkpointText(logName, 0), k.ed(), edSigner(f, "w.example", 2)))
	f.Add(signedLines("a b\n1\nw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8M=\n", "— w AAAAAAA=\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := parseNote(raw)
		if err == nil && !bytes.Equal(n.encode(), raw) {
			t.Errorf("%q comes back as %q", raw, n.encode())
		}
	})
}

// Nobody but the holders of the keys can make a note, so the only one that is accepted is the seed. It is a file: signatures
// that are made here would differ from process to process, and fuzzing has several.
func FuzzVerify(f *testing.F) {
	v := foreignVectors(f)[0]
	set, err := ParseSet(strings.Join(v.VKeys, " "))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(v.Note))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := set.Verify(raw)
		known := string(raw) == v.Note
		if known != (err == nil) || known && !strings.HasPrefix(v.Note, text+"\n") {
			t.Errorf("%q: %v", raw, err)
		}
	})
}

// The seed, two handovers of the keys of newKeyring, is a file for the same reason.
func FuzzParseChain(f *testing.F) {
	raw, err := os.ReadFile("testdata/chain.txt")
	if err != nil {
		f.Fatal(err)
	}
	first := newKeyring(f, logName, 1).set
	if c, _, err := ParseChain(first, raw); err != nil || len(c) != 3 {
		f.Fatalf("the seed has %d sets: %v", len(c), err)
	}
	_, rest, err := cutLink(raw)
	if err != nil {
		f.Fatal(err)
	}
	whole := [][]byte{{}, raw[:len(raw)-len(rest)], raw}
	for _, s := range whole {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, latest, err := ParseChain(first, data)
		known := slices.ContainsFunc(whole, func(s []byte) bool { return bytes.Equal(s, data) })
		if known != (err == nil) || known != (latest != nil) {
			t.Errorf("%q: %v", data, err)
		}
	})
}
