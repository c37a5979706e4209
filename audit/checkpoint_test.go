package audit

import (
	"fmt"
	"strings"
	"testing"

	f_log "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The roots of the trees over the first n of eight leaves, as published with the Certificate Transparency reference
// implementation and in transparency-dev/merkle. R-270.
func TestTreeKnownAnswers(t *testing.T) {
	t.Parallel()
	leaves := []string{"", "\x00", "\x10", "\x20\x21", "\x30\x31", "\x40\x41\x42\x43", "\x50\x51\x52\x53\x54\x55\x56\x57",
		"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f"}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	tr := newTree()
	for n := range roots {
		root, err := tr.root()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", root); got != roots[n] {
			t.Errorf("root over %d leaves = %s, want %s", n, got, roots[n])
		}
		if n < len(leaves) {
			if err := tr.append(leafHash([]byte(leaves[n]))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The tree agrees with another implementation, golang.org/x/mod/sumdb/tlog. R-270.
func TestTreeAgreesWithTlog(t *testing.T) {
	t.Parallel()
	tr := newTree()
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(ix []int64) ([]tlog.Hash, error) {
		var hs []tlog.Hash
		for _, i := range ix {
			hs = append(hs, stored[i])
		}
		return hs, nil
	})
	for n := range int64(600) {
		rec := fmt.Append(nil, "record ", n)
		hs, err := tlog.StoredHashes(n, rec, read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hs...)
		if err := tr.append(leafHash(rec)); err != nil {
			t.Fatal(err)
		}
		want, err := tlog.TreeHash(n+1, read)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := tr.root(); got != [32]byte(want) {
			t.Fatalf("root over %d records differs", n+1)
		}
	}
}

// A checkpoint of the log is accepted by the verifier of transparency-dev/formats, over the root that tlog computes
// from the records read back. R-271.
func TestCheckpointForeign(t *testing.T) {
	t.Parallel()
	_, l := newSimLog(t, testOptions(t))
	for i := range 37 {
		mustAppend(t, l, operation("acme/signing/ed25519/k", i))
	}
	mustClose(t, l)
	c, _, _, err := f_log.ParseCheckpoint(l.Checkpoint(), testOrigin, foreignVerifier(t))
	if err != nil {
		t.Fatal(err)
	}
	if c.Size != l.Size() {
		t.Errorf("checkpoint over %d records, log has %d", c.Size, l.Size())
	}
	_, vkey, err := note.GenerateKey(nil, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := f_log.ParseCheckpoint(l.Checkpoint(), testOrigin, wrong); err == nil {
		t.Error("accepted under another key")
	}
}

// A signed note has one byte string: what package note tolerates is refused, so that its hash can stand for it.
func TestCheckpointCanonical(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	good, err := signCheckpoint(o.Origin, 5, [32]byte{1}, o.Signers, o.Keys)
	if err != nil {
		t.Fatal(err)
	}
	raw := string(good.raw)
	sig := raw[strings.Index(raw, "\n\n")+2:]
	other, _, err := note.GenerateKey(nil, "witness.example")
	if err != nil {
		t.Fatal(err)
	}
	witness, err := note.NewSigner(other)
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := note.Sign(&note.Note{Text: raw[:strings.Index(raw, "\n\n")+1]}, o.Signers[0], witness)
	if err != nil {
		t.Fatal(err)
	}
	// The last character before the padding holds bits that decoding drops.
	at := strings.LastIndex(raw, "=") - 1
	stray := raw[:at] + string(raw[at]+1) + raw[at+1:]
	for name, bad := range map[string]string{
		"signature twice": raw + sig, "stray bits": stray, "other signature": string(cosigned), "no signature": strings.TrimSuffix(raw, sig),
		"extension line": strings.Replace(raw, "\n\n", "\nmore\n\n", 1), "leading zero": strings.Replace(raw, "\n5\n", "\n05\n", 1),
		"signed size": strings.Replace(raw, "\n5\n", "\n+5\n", 1), "other origin": "x" + raw,
	} {
		c, err := parseCheckpoint([]byte(bad), o.Origin)
		if err == nil {
			err = c.verify(o.Keys)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
