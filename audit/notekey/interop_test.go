package notekey

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"

	f_log "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

type foreignVector struct {
	VKeys []string `json:"vkeys"`
	Note  string   `json:"note"`
}

// foreignVectors reads checkpoints that the signers of github.com/transparency-dev/formats v0.1.1 and golang.org/x/mod
// v0.42.0 made: one by a log under its own name, one by a cosigner under another, so that no field of the signed message can stand in
// the place of another.
func foreignVectors(t testing.TB) []foreignVector {
	t.Helper()
	raw, err := os.ReadFile("testdata/formats.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []foreignVector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 2 {
		t.Fatalf("%d vectors", len(vectors))
	}
	return vectors
}

//
func TestForeignSigners(t *testing.T) {
	t.Parallel()
	for i, v := range foreignVectors(t) {
		set, err := ParseSet(strings.Join(v.VKeys, " "))
		if err != nil {
			t.Fatal(err)
		}
		if got := set.String(); got != strings.Join(v.VKeys, " ") {
			t.Errorf("vector %d: the keys come back as %q", i, got)
		}
		n, err := parseNote([]byte(v.Note))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.verify(set.Name(), set.keys); err != nil {
			t.Errorf("vector %d: %v", i, err)
		}
		n.size++
		for j, k := range set.keys {
			if k.Verify([]byte(n.text()), n.sigs[j].value) {
				t.Errorf("vector %d: %s accepts another size", i, k)
			}
		}
		_, err = set.Verify([]byte(v.Note))
		if own := n.origin == set.Name(); own != (err == nil) {
			t.Errorf("vector %d, by the log itself %t: %v", i, own, err)
		}
	}
}

// What Sign writes, package note of golang.org/x/mod and the parser of transparency-dev/formats read, the Ed25519 half with
// the former's own verifier; and a note of the former's signer is one of ours. R-271.
func TestForeignReaders(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	text := checkpointText(logName, 7)
	raw := mustSign(t, text, k.signers...)
	ed, err := note.NewVerifier(k.ed().Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(raw, note.VerifierList(ed))
	if err != nil || n.Text != text || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 {
		t.Errorf("package note: %+v, %v", n, err)
	}
	c, rest, n, err := f_log.ParseCheckpoint(raw, logName, ed, k.ml().Verifier())
	if err != nil || c.Size != 7 || len(rest) != 0 || len(n.Sigs) != 2 {
		t.Errorf("package log: %+v, %q, %v", c, rest, err)
	}

	skey := "PRIVATE+KEY+" + k.ed().Verifier().String()[:len(logName)+10] +
		base64.StdEncoding.EncodeToString(append([]byte{1}, edKey(1).Seed()...))
	foreign, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: text}, foreign, k.ml())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.set.Verify(signed); err != nil || got != text {
		t.Errorf("%q, %v", got, err)
	}
}
