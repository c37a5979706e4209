package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/tiles"
)

// richExport is an export with keys, a root of the key map, several checkpoints and two bundles.
func richExport(t *testing.T) (o Options, log, out string) {
	t.Helper()
	o = hybridOptions(t)
	log, l := newDirLog(t, o)
	for i := range 60 {
		mustAppend(t, l, operation(fmt.Sprint("k", i%7), i), &Record{Kind: KindDenied, Key: "k1", Op: "sign", Result: "Denied"},
			operation("k2", i), operation("k2", -i), &Record{Kind: KindNoise, Count: 3})
		if i%20 == 10 {
			if err := l.checkpointNow(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, l)
	out = filepath.Join(t.TempDir(), "out")
	mustExport(t, log, o, out, ExportOptions{})
	return o, log, out
}

// Each file of an export that is changed, cut, longer, gone or in another's place is found with nothing but the public keys, except
// that the format file and the oldest files of checkpoints, which say nothing that the records need, may be left out..
func TestExportTampered(t *testing.T) {
	t.Parallel()
	o, _, out := richExport(t)
	check := func(what string) {
		t.Helper()
		rep, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys})
		if verdict(err) != VerdictExport {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && strings.Contains(err.Error(), "offset") {
			t.Errorf("%s: an export has no offsets: %v", what, err)
		}
		if rep == nil {
			t.Errorf("%s: no report", what)
		}
	}
	files := filesOf(t, out)
	if len(files) < 8 {
		t.Fatalf("only %d files", len(files))
	}
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(out, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		for i := 0; i < len(b); i += 1 + len(b)*min(flipStep, 5)/60 {
			c := bytes.Clone(b)
			c[i] ^= 1 << (i % 8)
			put(name, c)
			check(fmt.Sprintf("%s byte %d", name, i))
		}
		put(name, b[:len(b)-1])
		check(name + " cut")
		put(name, append(b[:len(b):len(b)], 0))
		check(name + " longer")
		put(name, nil)
		check(name + " empty")
		if err := os.Remove(filepath.Join(out, name)); err != nil {
			t.Fatal(err)
		}
		if name == formatFile || strings.HasPrefix(name, checkpointPrefix) {
			if _, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys}); err != nil {
				t.Errorf("without %s: %v", name, err)
			}
		} else {
			check(name + " gone")
		}
		put(name, b)
	}
	full, part := "tile/entries/000", "tile/entries/001.p/"
	for name := range files {
		if strings.HasPrefix(name, part) {
			part = name
		}
	}
	put(full, files[part])
	put(part, files[full])
	check("two bundles swapped")
	put(full, files[full])
	put(part, files[part])

	// The signature that a quantum computer cannot forge may not be left out, nor the other.
	lines := strings.SplitAfter(string(files[checkpointFile]), "\n")
	for i := 4; i < len(lines)-1; i++ {
		put(checkpointFile, []byte(strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "")))
		check(fmt.Sprintf("without signature line %d", i))
	}
	put(checkpointFile, files[checkpointFile])
	if _, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: newTestKeyring(t, testOrigin, 2).set}); verdict(err) != VerdictExport {
		t.Errorf("with other keys: %v", err)
	}

	// A checkpoint of another log with the same keys, and of the same log when it was shorter.
	_, _, other := richExport(t)
	for name, b := range filesOf(t, other) {
		if b = bytes.Clone(b); !bytes.Equal(b, files[name]) {
			put(name, b)
			check(name + " of another log")
			put(name, files[name])
		}
	}
	first, _, _ := bytes.Cut(files[checkpointsName(0)], []byte("\n\n\n"))
	put(checkpointFile, append(bytes.TrimRight(first, "\n"), '\n'))
	check("an earlier checkpoint")
	put(checkpointFile, files[checkpointFile])
	if _, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys}); err != nil {
		t.Errorf("all put back: %v", err)
	}
}

// A signed log that contradicts itself is refused, although tree, tiles and signatures fit: who has the keys cannot
// hide a record of a key, answer what is not there, name other checkpoints or other counts of keys..
func TestExportContradicts(t *testing.T) {
	t.Parallel()
	op := func(seq, prev uint64) *Record {
		r := operation("k", int(seq))
		r.KeySeq, r.KeyPrev = seq, prev
		return r
	}
	noise := func() *Record { return &Record{Kind: KindNoise, Count: 1} }
	keyless := operation("", 1)
	keyless.KeySeq = 1
	many := []*Record{{Kind: KindGenesis}}
	for range 300 {
		many = append(many, noise())
	}
	given := append(slices.Clone(many), &Record{Kind: KindPrune, Count: 256})
	late := append(slices.Clone(many), op(4, 17))
	late = append(late, &Record{Kind: KindPrune, Count: 256})
	for name, tt := range map[string]struct {
		recs  []*Record
		prune bool
		ok    bool
	}{
		"in order":              {[]*Record{{Kind: KindGenesis}, op(1, 0), noise(), op(2, 2)}, false, true},
		"no beginning":          {[]*Record{noise(), noise()}, false, false},
		"two beginnings":        {[]*Record{{Kind: KindGenesis}, {Kind: KindGenesis}}, false, false},
		"a record left out":     {[]*Record{{Kind: KindGenesis}, op(1, 0), op(3, 2)}, false, false},
		"a number twice":        {[]*Record{{Kind: KindGenesis}, op(1, 0), op(1, 0)}, false, false},
		"another link":          {[]*Record{{Kind: KindGenesis}, op(1, 0), noise(), op(2, 1)}, false, false},
		"a number without key":  {[]*Record{{Kind: KindGenesis}, keyless}, false, false},
		"an answer to later":    {[]*Record{{Kind: KindGenesis}, {Kind: KindOperation, Ref: 3}, noise()}, false, false},
		"another root of keys":  {[]*Record{{Kind: KindGenesis}, op(1, 0), {Kind: KindMap, Ref: 2, Count: 1, InputHash: [32]byte{1}}}, false, false},
		"pruned and stated":     {given, true, true},
		"a key begins in there": {late, true, true},
		"pruned, not stated":    {many, true, false},
		"states the future":     {append(many[:2:2], &Record{Kind: KindPrune, Count: 100}), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			out := forge(t, o, tt.recs)
			if tt.prune {
				if err := os.Remove(filepath.Join(out, "tile/entries/000")); err != nil {
					t.Fatal(err)
				}
			}
			_, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys})
			if tt.ok && err != nil || !tt.ok && verdict(err) != VerdictExport {
				t.Error(err)
			}
		})
	}
}

// Signatures that fit the keys do not help where they are over another tree, or where the format file, which the first record
// names, speaks of other keys.
func TestExportOfOthers(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	recs := []*Record{{Kind: KindGenesis}, {Kind: KindNoise, Count: 1}}
	out := forge(t, o, recs)
	c, err := signCheckpoint(o.Origin, 2, [32]byte{1}, o.Signers, o.Keys)
	if err == nil {
		err = os.WriteFile(filepath.Join(out, checkpointFile), c.raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys}); verdict(err) != VerdictExport {
		t.Errorf("another root: %v", err)
	}
	for _, own := range []bool{true, false} {
		keys := o.Keys
		if !own {
			keys = newTestKeyring(t, o.Origin, 3).set
		}
		f := &format{origin: o.Origin, keys: keys.String(), segment: minSegmentSize}
		text := f.encode()
		recs[0].InputHash = sha256.Sum256(text)
		out := forge(t, o, recs)
		if err := os.WriteFile(filepath.Join(out, formatFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys}); own && err != nil || !own && verdict(err) != VerdictExport {
			t.Errorf("a format file with the log's own keys (%v): %v", own, err)
		}
	}
}

// Who reads single records from an export or a server that changed them gets an error, never something else..
func TestReadExport(t *testing.T) {
	t.Parallel()
	o, _, out := richExport(t)
	read := func() (got []byte, err error) {
		r, err := ReadExport(out, o.Keys)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		err = r.Read(t.Context(), 0, func(_ uint64, b []byte, _ *Record) error {
			got = append(got, b...)
			return nil
		})
		if err == nil {
			var p *Proof
			if p, err = r.Prove(77); err == nil {
				_, _, _, err = p.Verify(o.Keys)
			}
		}
		return got, err
	}
	want, err := read()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range filesOf(t, out) {
		for i := 0; i < len(b); i += 1 + len(b)*min(flipStep, 3)/40 {
			c := bytes.Clone(b)
			c[i] ^= 1 << (i % 8)
			if err := os.WriteFile(filepath.Join(out, name), c, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := read()
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("%s byte %d: other records are read", name, i)
			}
			if err == nil && strings.HasPrefix(name, "tile/entries/") || err != nil && verdict(err) == "" {
				t.Errorf("%s byte %d: %v", name, i, err)
			}
		}
		if err := os.WriteFile(filepath.Join(out, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src, err := tiles.NewDirSource(out)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	raw, err := os.ReadFile(filepath.Join(out, checkpointFile))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(src, raw, o.Keys)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Prove(5)
	if err != nil {
		t.Fatal(err)
	}
	checkProof(t, p)
	again := filepath.Join(t.TempDir(), "again")
	if err := r.Export(t.Context(), again, ExportOptions{}); err != nil {
		t.Errorf("exported from a source: %v", err)
	}
	if _, err := NewReader(src, raw, testOptions(t).Keys); verdict(err) != VerdictExport {
		t.Errorf("with other keys: %v", err)
	}
}

// A log whose keys were replaced is exported with the handovers, and verified by who trusts any of its keys; without them, or
// with one changed, it is not..
func TestExportHandedOver(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, optionsOf(t, 0))
	for n := range 2 {
		grow(t, l, 5)
		mustClose(t, l)
		mustChange(t, d, n, n+1)
		l = openSim(t, d, optionsOf(t, n+1))
	}
	mustClose(t, l)
	oldest, _ := keysNumbered(t, 0)
	r, err := openReader(t.Context(), d, VerifyOptions{Keys: oldest})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if len(r.Keys()) != 3 {
		t.Errorf("%d sets of keys", len(r.Keys()))
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := r.Export(t.Context(), out, ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	verify := func(n int) error {
		set, _ := keysNumbered(t, n)
		_, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: set})
		return err
	}
	for n := range 4 {
		if err := verify(n); n < 3 && err != nil || n == 3 && verdict(err) != VerdictExport {
			t.Errorf("with keys %d: %v", n, err)
		}
	}
	if e, err := ReadExport(out, oldest); err != nil {
		t.Error(err)
	} else {
		if _, err := e.Prove(3); err != nil {
			t.Error(err)
		}
		e.Close()
	}
	path := filepath.Join(out, handoverFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += 11 {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := verify(0); verdict(err) != VerdictExport {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := verify(n); verdict(err) != VerdictExport {
			t.Errorf("without handovers, keys %d: %v", n, err)
		}
	}
}

// forge writes a signed export of any records.
func forge(t *testing.T, o Options, recs []*Record) string {
	t.Helper()
	s := tiles.NewMemory(1 << 16)
	for i, r := range recs {
		c := *r
		c.Time = time.Unix(1_790_000_000+int64(i), 0)
		b, err := c.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Append(b, leafHash(b))
	}
	size := uint64(len(recs))
	root, err := s.Root(size)
	if err != nil {
		t.Fatal(err)
	}
	c, err := signCheckpoint(o.Origin, size, root, o.Signers, o.Keys)
	if err != nil {
		t.Fatal(err)
	}
	out := target{partial: t.TempDir(), names: make(map[string]bool)}
	err = tiles.Export(t.Context(), s, size, nil, out.write, nil)
	for name, b := range map[string][]byte{exportKeys: []byte(o.Keys.String() + "\n"), checkpointFile: c.raw} {
		err = errors.Join(err, out.write(name, b))
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.partial
}

// A witness that was asked for must have cosigned a checkpoint that the log continues. R-201.
func TestExportWitnessed(t *testing.T) {
	t.Parallel()
	o, log, _ := richExport(t)
	skey, vkey, err := note.GenerateKey(nil, "witness.example/w")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	w, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(log, checkpointsName(0)))
	if err != nil {
		t.Fatal(err)
	}
	var notes [][]byte
	for rest := list; len(rest) > 0; {
		text, tail, _ := bytes.Cut(rest, []byte("\n\n"))
		sigs, tail, _ := bytes.Cut(tail, []byte("\n\n"))
		notes = append(notes, slices.Concat(text, []byte("\n\n"), sigs, []byte("\n")))
		rest = tail
	}
	cosign := func(raw []byte) []byte {
		text, _, _ := bytes.Cut(raw, []byte("\n\n"))
		signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, signer)
		if err != nil {
			t.Fatal(err)
		}
		return append(bytes.Clone(raw), signed[len(text)+2:]...)
	}
	c, err := parseCheckpoint(notes[2], testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	vo := VerifyOptions{Keys: o.Keys, Witnesses: []note.Verifier{w}}
	fork, err := signCheckpoint(testOrigin, c.size, [32]byte{7}, o.Signers, o.Keys)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		note []byte
		ok   bool
	}{
		{"cosigned", cosign(notes[2]), true},
		{"not by it", notes[2], false},
		{"of another history", cosign(fork.raw), false},
		{"changed", bytes.Replace(cosign(notes[2]), []byte(" "), []byte("  "), 1), false},
	} {
		if err := os.WriteFile(filepath.Join(log, cosignedFile), tt.note, 0o600); err != nil {
			t.Fatal(err)
		}
		rep, err := Verify(t.Context(), log, vo)
		if tt.ok && (err != nil || rep.Cosigned[w.Name()] != c.size) || !tt.ok && verdict(err) == "" {
			t.Errorf("%s: verify: %v", tt.name, err)
		}
		r, err := OpenReader(t.Context(), log, vo)
		if err == nil {
			p, perr := r.Cosigned()
			if perr != nil || p.Signed() != c.size {
				t.Errorf("%s: the cosigned state: %v", tt.name, perr)
			} else if proof, err := p.Prove(1); err != nil || !proof.CosignedBy(w, o.Keys) {
				t.Errorf("%s: a cosigned proof: %v", tt.name, err)
			}
			r.Close()
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s: reader: %v", tt.name, err)
		}
		out := filepath.Join(t.TempDir(), "out")
		if r, err = OpenReader(t.Context(), log, VerifyOptions{Keys: o.Keys}); err != nil {
			t.Fatal(err)
		}
		if err := r.Export(t.Context(), out, ExportOptions{}); err == nil {
			if _, err := VerifyExport(t.Context(), out, vo); (err == nil) != tt.ok {
				t.Errorf("%s: export: %v", tt.name, err)
			}
		} else if tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		r.Close()
	}
}
