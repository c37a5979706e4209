package audit

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/notekey"
)

// A testKeyring is a log's hybrid keys, from a fixed seed.
type testKeyring struct {
	set     *notekey.Set
	signers []note.Signer
}

func newTestKeyring(t testing.TB, name string, seed byte) testKeyring {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	ed, err := notekey.NewEd25519(name, key.Public().(ed25519.PublicKey), func(msg []byte) ([]byte, error) { return ed25519.Sign(key, msg), nil })
	if err != nil {
		t.Fatal(err)
	}
	public, private := mldsa44.NewKeyFromSeed((*[mldsa44.SeedSize]byte)(bytes.Repeat([]byte{seed}, mldsa44.SeedSize)))
	ml, err := notekey.NewMLDSA44(name, public.Bytes(), func(msg []byte) ([]byte, error) {
		sig := make([]byte, mldsa44.SignatureSize)
		return sig, mldsa44.SignTo(private, msg, nil, true, sig)
	}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	set, err := notekey.NewSet(ed.Verifier(), ml.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	return testKeyring{set, []note.Signer{ed, ml}}
}

// hybridOptions are testOptions with the keys of a custodian.
func hybridOptions(t testing.TB) Options {
	o, k := testOptions(t), newTestKeyring(t, testOrigin, 1)
	o.Keys, o.Signers = k.set, k.signers
	return o
}

func mustExport(t *testing.T, log string, o Options, out string, eo ExportOptions) {
	t.Helper()
	if err := mustOpenReader(t, log, VerifyOptions{Keys: o.Keys}).Export(t.Context(), out, eo); err != nil {
		t.Fatal(err)
	}
}

// logOfSize makes a closed log of exactly n records.
func logOfSize(t *testing.T, o Options, n int) string {
	t.Helper()
	if n == 1 {
		dir := filepath.Join(t.TempDir(), "log")
		if err := Create(dir, o); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	o.SegmentSize = 1 << 20
	dir, l := newDirLog(t, o)
	for left := n - 4; left > 0; { // all but genesis, open, the name of a checkpoint, and close
		recs := make([]*Record, min(left, 500))
		for i := range recs {
			recs[i] = &Record{Kind: KindNoise, Count: uint64(i + 1)}
		}
		mustAppend(t, l, recs...)
		left -= len(recs)
	}
	mustClose(t, l)
	return dir
}

// An export of a log of any size is verified with the keys alone, has all records, and is the same as a tar; one that is brought
// up to date is the same as a fresh one. R-273.
func TestExportSizes(t *testing.T) {
	t.Parallel()
	sizes := []int{1, 4, 256, 257, 512, 65537}
	if flipStep > 1 {
		sizes = sizes[:5] // tens of thousands of records tell the race detector nothing more
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			dir, out := logOfSize(t, o, n), filepath.Join(t.TempDir(), "out")
			mustExport(t, dir, o, out, ExportOptions{})
			var seen uint64
			rep, err := VerifyExport(t.Context(), out, VerifyOptions{Keys: o.Keys, OnRecord: func(i uint64, _ *Record) error {
				if i != seen {
					t.Errorf("record %d after %d", i, seen)
				}
				seen++
				return nil
			}})
			if err != nil || rep.Size != uint64(n) || seen != uint64(n) || rep.CheckpointSize != uint64(n) || rep.Checkpoints == 0 {
				t.Fatalf("%d records, %d seen: %v: %+v", n, seen, err, rep)
			}
			var b bytes.Buffer
			if err := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys}).ExportTar(t.Context(), &b, ExportOptions{}); err != nil {
				t.Fatal(err)
			}
			sameFiles(t, untar(t, &b), filesOf(t, out))

			l, err := Open(t.Context(), dir, o)
			if err != nil {
				t.Fatal(err)
			}
			grow(t, l, 300)
			mustClose(t, l)
			before := filesOf(t, out)
			fresh := filepath.Join(t.TempDir(), "fresh")
			mustExport(t, dir, o, out, ExportOptions{})
			mustExport(t, dir, o, fresh, ExportOptions{})
			sameFiles(t, filesOf(t, out), filesOf(t, fresh))
			sameInode(t, out, fresh, before)
			if _, err := os.Lstat(out + partialSuffix); !os.IsNotExist(err) {
				t.Errorf("a part is left: %v", err)
			}
			// Back at the size of the first one, from the list of checkpoints.
			back := filepath.Join(t.TempDir(), "back")
			mustExport(t, dir, o, back, ExportOptions{Size: uint64(n)})
			sameFiles(t, filesOf(t, back), before)
		})
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	m := make(map[string][]byte)
	last := ""
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = h.Name
		if m[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
	if last != checkpointFile {
		t.Errorf("the tar ends with %s", last)
	}
	return m
}

func sameFiles(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))
	if !slices.Equal(a, b) {
		t.Fatalf("files %q\nnot %q", a, b)
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// sameInode checks that the full tiles of an earlier export were taken over.
func sameInode(t *testing.T, out, fresh string, before map[string][]byte) {
	t.Helper()
	for name := range before {
		if !strings.HasPrefix(name, "tile/") || strings.Contains(name, ".p/") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil || !bytes.Equal(b, before[name]) {
			t.Errorf("%s: full, and yet it changed (%v)", name, err)
		}
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
}

// An export that was broken off is finished; one of a log that was put back, of another log, or into a folder of other things is
// refused, and the old export stays..
func TestExportOver(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, l := newDirLog(t, o)
	grow(t, l, 400)
	mustClose(t, l)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")

	ctx, cancel := context.WithCancel(t.Context())
	err := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys}).Export(ctx, out, ExportOptions{Progress: func(done, _ uint64) {
		if done == 3 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled: %v", err)
	}
	if _, err := os.Lstat(out); !os.IsNotExist(err) {
		t.Errorf("a part of an export is in place: %v", err)
	}
	mustExport(t, dir, o, out, ExportOptions{})
	want := filesOf(t, out)
	mustExport(t, dir, o, out, ExportOptions{})
	sameFiles(t, filesOf(t, out), want)

	// What was broken off after its last tile leaves partial ones that a longer log does not have.
	brokenOff := filepath.Join(t.TempDir(), "broken")
	if err := os.CopyFS(brokenOff+partialSuffix, os.DirFS(out)); err != nil {
		t.Fatal(err)
	}

	l, err = Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, l, 3)
	mustClose(t, l)
	mustExport(t, dir, o, out, ExportOptions{})
	want = filesOf(t, out)
	mustExport(t, dir, o, brokenOff, ExportOptions{})
	sameFiles(t, filesOf(t, brokenOff), want)
	refused := func(what, log string, target string, is func(error) bool) {
		t.Helper()
		before := filesOf(t, target)
		err := mustOpenReader(t, log, VerifyOptions{Keys: o.Keys}).Export(t.Context(), target, ExportOptions{})
		if !is(err) {
			t.Errorf("%s: %v", what, err)
		}
		sameFiles(t, filesOf(t, target), before)
	}
	aVerdict := func(err error) bool { return verdict(err) != "" }
	refused("a log that was put back", copied, out, aVerdict)
	other, l := newDirLog(t, o)
	grow(t, l, 700)
	mustClose(t, l)
	refused("another log", other, out, aVerdict)
	mine := t.TempDir()
	if err := os.WriteFile(filepath.Join(mine, "letter"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a folder of other things", dir, mine, func(err error) bool { return errors.Is(err, ErrNotExport) })
	if err := os.WriteFile(filepath.Join(out, "tile/entries/000"), append(want["tile/entries/000"], 1), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a damaged export", dir, out, aVerdict)
	if err := mustOpenReader(t, dir, VerifyOptions{Keys: o.Keys}).Export(t.Context(), filepath.Join(t.TempDir(), "x"), ExportOptions{Size: 5}); err == nil {
		t.Error("a size without a checkpoint is exported")
	}
}
