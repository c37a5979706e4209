package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// newDirLog creates and opens a log in a folder.
func newDirLog(t *testing.T, o Options) (string, *Log) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, l
}

func mustOpenReader(t *testing.T, dir string, o VerifyOptions) *Reader {
	t.Helper()
	r, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// checkProof verifies a proof with nothing of this package but the checkpoint's form.
func checkProof(t *testing.T, p *Proof) {
	t.Helper()
	c, err := parseCheckpoint(p.Checkpoint, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckRecord(p.Hashes, int64(c.size), c.root, int64(p.Index), tlog.RecordHash(p.Record)); err != nil {
		t.Errorf("record %d of %d: %v", p.Index, c.size, err)
	}
}

// A reader beside the log's writer, which recycles its ring all the time, sees a log that only grows, with and without the MAC
// key, and all that it gives out is right. R-273.
func TestReaderBesideWriter(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.RingSegments, o.CheckpointInterval = minSegments, 3*time.Millisecond
	dir, l := newDirLog(t, o)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				recs := make([]*Record, 20)
				for j := range recs {
					recs[j] = operation(fmt.Sprint("k", w, i%5), i)
				}
				if _, err := l.Append(context.Background(), recs...); err != nil {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	var last []byte
	var size uint64
	for i := 0; i < 12 || size < 3000 && i < 500; i++ {
		vo := VerifyOptions{Keys: o.Keys}
		if i%2 == 0 {
			vo.MACKey = testMAC
		}
		r, err := OpenReader(t.Context(), dir, vo)
		if err != nil {
			t.Errorf("reader %d: %v", i, err)
			break
		}
		if r.Size() < size || vo.MACKey == nil && r.Size() != r.Signed() {
			t.Errorf("reader %d: %d records after %d", i, r.Size(), size)
		}
		size = max(size, r.Signed())
		if last != nil {
			if err := r.Continues(last); err != nil {
				t.Errorf("reader %d: %v", i, err)
			}
		}
		last = r.Checkpoint()
		p, err := r.Prove(rand.Uint64N(r.Signed()))
		if err != nil {
			t.Fatal(err)
		}
		checkProof(t, p)
		n := r.Size() - min(r.Size(), 700)
		if err := r.Read(t.Context(), n, func(index uint64, b []byte, _ *Record) error {
			if index != n || len(b) == 0 {
				t.Errorf("record %d instead of %d", index, n)
			}
			n++
			return nil
		}); err != nil || n != r.Size() {
			t.Errorf("reader %d: read to %d of %d: %v", i, n, r.Size(), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys}).Export(t.Context(), out, ExportOptions{}); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
	if err := l.Err(); err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	if _, err := Verify(t.Context(), dir, VerifyOptions{Keys: o.Keys, MACKey: testMAC, Against: [][]byte{last}}); err != nil {
		t.Error(err)
	}
}

// Records that are durable and not signed yet are read with the MAC key, and not without; they cannot be proved. The log
// is not changed by its readers.
func TestReaderUnsignedTail(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, l := newDirLog(t, o)
	mustAppend(t, l, operation("k", 1), operation("k", 2))
	before := filesOf(t, dir)
	r := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys, MACKey: testMAC})
	outsider := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys})
	if r.Size() != l.Size() || r.Signed() != 2 || outsider.Size() != 2 || outsider.Signed() != 2 {
		t.Errorf("%d and %d of %d; outsider %d and %d", r.Size(), r.Signed(), l.Size(), outsider.Size(), outsider.Signed())
	}
	if _, err := r.Prove(2); !errors.Is(err, ErrBeyond) {
		t.Errorf("an unsigned record is proved: %v", err)
	}
	if _, err := r.ReadTile("tile/0/000.p/3"); !errors.Is(err, ErrBeyond) {
		t.Errorf("an unsigned tile: %v", err)
	}
	if _, err := r.ReadTile("tile/63/000"); !errors.Is(err, ErrBeyond) {
		t.Errorf("a tile far above: %v", err)
	}
	var ops int
	if err := r.Read(t.Context(), 0, func(_ uint64, _ []byte, rec *Record) error {
		if rec.Kind == KindOperation {
			ops++
		}
		return nil
	}); err != nil || ops != 2 {
		t.Errorf("%d operations: %v", ops, err)
	}
	p, _, err := r.ProveConsistency(1)
	if err != nil {
		t.Fatal(err)
	}
	one, err := tlog.TreeHash(1, tiles.HashReader(l, 2, r.c.root))
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckTree(p, 2, r.c.root, 1, one); err != nil {
		t.Error(err)
	}
	if after := filesOf(t, dir); len(after) != len(before) {
		t.Errorf("%d files were %d", len(after), len(before))
	} else {
		for name, b := range before {
			if !bytes.Equal(after[name], b) {
				t.Errorf("%s was changed", name)
			}
		}
	}
	mustClose(t, l)
}

// filesOf returns the contents of the files under dir, by their slash-separated names.
func filesOf(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	m := make(map[string][]byte)
	if err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil {
			m[filepath.ToSlash(name)], err = os.ReadFile(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// Who reads a changed log gets an error or what was there before, never something else. R-014.
func TestReaderTampered(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	for i := range 30 {
		mustAppend(t, l, operation("k", i), operation(fmt.Sprint("k", i), i))
	}
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, operation("k", 99))
	mustClose(t, l)
	read := func(d *fsystest.Disk, mac bool) (got []byte, err error) {
		vo := VerifyOptions{Keys: o.Keys}
		if mac {
			vo.MACKey = testMAC
		}
		r, err := openReader(t.Context(), d, vo)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		err = r.Read(t.Context(), 0, func(_ uint64, b []byte, _ *Record) error {
			got = append(got, b...)
			return nil
		})
		return got, err
	}
	want, err := read(d.Killed(), true)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(d.Killed(), false); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("without the mac key: %v", err)
	}
	for name, f := range d.Files {
		step := 97 * flipStep
		switch {
		case strings.HasPrefix(name, segmentPrefix):
			step = 3989
		case strings.HasPrefix(name, "data-"), strings.HasPrefix(name, "level-"):
			step = 13 * flipStep
		}
		for i := 0; i < len(f.Data); i += step {
			c := d.Killed()
			c.Files[name].Data[i] ^= 1 << (i % 8)
			for _, mac := range []bool{true, false} {
				if got, err := read(c, mac); err == nil && !bytes.Equal(got, want) {
					t.Errorf("%s byte %d: other records are read (mac key %v)", name, i, mac)
				}
			}
		}
		c := d.Killed()
		delete(c.Files, name)
		if got, err := read(c, true); err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s removed: other records are read", name)
		} else if err != nil && verdict(err) == "" {
			t.Errorf("%s removed: %v", name, err)
		}
	}
}

// A log that was put back, or that has another history, is told by a checkpoint that was kept..
func TestAgainst(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, l := newDirLog(t, o)
	grow(t, l, 3)
	if err := l.checkpointNow(false); err != nil {
		t.Fatal(err)
	}
	kept := l.Checkpoint()
	grow(t, l, 3)
	mustClose(t, l)
	newest, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		t.Fatal(err)
	}
	shorter, l := newDirLog(t, o)
	mustClose(t, l)
	other, l := newDirLog(t, o)
	grow(t, l, 9)
	mustClose(t, l)
	otherKeys := newTestKeyring(t, testOrigin, 9)
	foreign, err := signCheckpoint(testOrigin, 3, [32]byte{1}, otherKeys.signers, otherKeys.set)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, dir string
		against   []byte
		want      Verdict
		refused   bool
	}{
		{"continued", dir, kept, "", false},
		{"itself", dir, newest, "", false},
		{"put back", shorter, newest, VerdictStale, true},
		{"another history", other, kept, VerdictForked, true},
		{"other keys", dir, foreign.raw, "", true},
		{"a changed checkpoint", dir, bytes.Replace(kept, []byte("\n— "), []byte("\n— x"), 1), "", true},
	} {
		vo := VerifyOptions{Keys: o.Keys, Against: [][]byte{tt.against}}
		r, err := OpenReader(t.Context(), tt.dir, vo)
		if err == nil {
			r.Close()
		}
		if (err != nil) != tt.refused || verdict(err) != tt.want {
			t.Errorf("%s: reader: %v", tt.name, err)
		}
		if _, err := Verify(t.Context(), tt.dir, vo); (err != nil) != tt.refused || verdict(err) != tt.want {
			t.Errorf("%s: verify: %v", tt.name, err)
		}
		out := filepath.Join(t.TempDir(), "out")
		if err := mustOpenReader(t, tt.dir, VerifyOptions{Keys: o.Keys}).Export(t.Context(), out, ExportOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyExport(t.Context(), out, vo); (err != nil) != tt.refused || (verdict(err) != "") != (tt.want != "") {
			t.Errorf("%s: export: %v", tt.name, err)
		}
	}
	if _, err := OpenReader(t.Context(), dir, VerifyOptions{Keys: otherKeys.set}); verdict(err) != VerdictFormat {
		t.Errorf("with other keys: %v", err)
	}
}

// A tlog-proof is enough with the keys, and any change of a byte is refused. R-273.
func TestTLogProof(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, l := newDirLog(t, o)
	grow(t, l, 20)
	mustClose(t, l)
	r := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys})
	p, err := r.Prove(7)
	if err != nil {
		t.Fatal(err)
	}
	checkProof(t, p)
	text := p.TLogProof()
	again, err := ParseTLogProof(text)
	if err != nil || !bytes.Equal(again.TLogProof(), text) {
		t.Fatalf("not read back: %v", err)
	}
	rec, size, root, err := again.Verify(o.Keys)
	if err != nil || rec.Kind != KindOperation || size != r.Signed() || root != r.c.root {
		t.Errorf("%v, %d records: %v", rec, size, err)
	}
	for i := range text {
		b := bytes.Clone(text)
		b[i] ^= 1 << (i % 8)
		if p, err := ParseTLogProof(b); err == nil {
			if _, _, _, err := p.Verify(o.Keys); err == nil {
				t.Errorf("a change of byte %d is not found", i)
			}
		}
	}
	bare := *p
	bare.Record = nil
	got, err := ParseTLogProof(bare.TLogProof())
	if err != nil || len(got.Record) != 0 {
		t.Errorf("without its record: %v", err)
	}
	if _, _, _, err := got.Verify(o.Keys); err == nil {
		t.Error("a proof without its record is accepted")
	}
	if _, err := ParseTLogProof(make([]byte, maxTLogProof+1)); err == nil {
		t.Error("a proof that is too long is read")
	}
}
