package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// oracle is the tree of the records of a log, built by package tlog alone.
type oracle struct{ hashes []tlog.Hash }

func (o *oracle) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, x := range at {
		out[i] = o.hashes[x]
	}
	return out, nil
}

func (o *oracle) root(tb testing.TB, size uint64) tlog.Hash {
	tb.Helper()
	h, err := tlog.TreeHash(int64(size), o)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func oracleOf(tb testing.TB, l *Log) *oracle {
	tb.Helper()
	o := new(oracle)
	err := l.Read(context.Background(), 0, func(i uint64, r *Record) error {
		b, err := r.AppendBinary(nil)
		if err != nil {
			return err
		}
		h, err := tlog.StoredHashes(int64(i), b, o)
		o.hashes = append(o.hashes, h...)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

// packedLog is a log of more than n records, most of which are read from the disk.
func packedLog(tb testing.TB, n int) (*fsystest.Disk, *Log) {
	tb.Helper()
	d, l := newSimLog(tb, testOptions(tb))
	for i := 0; i < n; i += 50 {
		var recs []*Record
		for j := range min(50, n-i) {
			recs = append(recs, operation(fmt.Sprintf("acme/p/ed25519/%d", (i+j)%7), i+j))
		}
		mustAppend(tb, l, recs...)
	}
	mustClose(tb, l)
	l = openSim(tb, d, testOptions(tb))
	tb.Cleanup(func() { l.Close() })
	return d, l
}

// readSim and writeSim work on a file of a log that runs.
func readSim(tb testing.TB, d *fsystest.Disk, name string) []byte {
	tb.Helper()
	b, err := fsys.ReadFile(d, name, 1<<30)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func writeSim(tb testing.TB, d *fsystest.Disk, name string, off int, b []byte) {
	tb.Helper()
	f, err := d.OpenFile(name, os.O_RDWR)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := f.WriteAt(b, int64(off)); err != nil {
		tb.Fatal(err)
	}
}

// Proofs for any two sizes under the latest checkpoint are those of the tree of the records. R-273.
func TestProofsOfEverySize(t *testing.T) {
	t.Parallel()
	_, l := packedLog(t, 600)
	o, n := oracleOf(t, l), l.Signed()
	if n < 600 || l.Size() < n {
		t.Fatalf("%d records, %d signed", l.Size(), n)
	}
	sizes := []uint64{1, 2, 3, 255, 256, 257, 511, 512, 513, n - 1, n}
	for _, size := range sizes {
		root := o.root(t, size)
		for _, index := range []uint64{0, 1, 254, 255, 256, 257, 511, 512, size - 1} {
			p, err := l.ProveAt(index, size)
			if index >= size {
				if !errors.Is(err, ErrBeyond) {
					t.Errorf("%d of %d: %v", index, size, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(p.Hashes, int64(size), root, int64(index), tlog.RecordHash(p.Record)); err != nil || p.LeafHash() != tlog.RecordHash(p.Record) {
				t.Errorf("%d of %d: %v", index, size, err)
			}
		}
		for _, old := range append([]uint64{0}, sizes...) {
			p, note, err := l.ProveConsistencyAt(old, size)
			if old == 0 || old > size {
				if !errors.Is(err, ErrBeyond) {
					t.Errorf("%d after %d: %v", size, old, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckTree(p, int64(size), root, int64(old), o.root(t, old)); err != nil || !bytes.Equal(note, l.Checkpoint()) {
				t.Errorf("%d after %d: %v", size, old, err)
			}
		}
	}
	for _, beyond := range []uint64{n + 1, l.Size() + 1, 1 << 62, 1<<64 - 1} {
		if _, err := l.ProveAt(0, beyond); !errors.Is(err, ErrBeyond) {
			t.Errorf("in %d records: %v", beyond, err)
		}
		if _, _, err := l.ProveConsistencyAt(1, beyond); !errors.Is(err, ErrBeyond) {
			t.Errorf("%d records: %v", beyond, err)
		}
	}
}

// A proof verifies with the keys alone, and with nothing of it changed.
func TestProofVerifies(t *testing.T) {
	t.Parallel()
	_, l := packedLog(t, 300)
	p, err := l.Prove(270)
	if err != nil {
		t.Fatal(err)
	}
	if r, size, _, err := p.Verify(testSet(t)); err != nil || r.Op != "sign" || size != l.Signed() {
		t.Fatalf("%+v of %d: %v", r, size, err)
	}
	for name, edit := range map[string]func(*Proof){
		"index":      func(p *Proof) { p.Index++ },
		"far index":  func(p *Proof) { p.Index = 1 << 63 },
		"record":     func(p *Proof) { p.Record = slices.Clone(p.Record); p.Record[9] ^= 1 },
		"hash":       func(p *Proof) { p.Hashes = slices.Clone(p.Hashes); p.Hashes[0][0] ^= 1 },
		"short":      func(p *Proof) { p.Hashes = p.Hashes[1:] },
		"long":       func(p *Proof) { p.Hashes = append(slices.Clone(p.Hashes), tlog.Hash{}) },
		"unsigned":   func(p *Proof) { p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("\n30"), []byte("\n31"), 1) },
		"other root": func(p *Proof) { p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("="), []byte("A"), 1) },
		"empty":      func(p *Proof) { p.Checkpoint = nil },
	} {
		bad := *p
		edit(&bad)
		if _, _, _, err := bad.Verify(testSet(t)); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	if _, _, _, err := p.Verify(nil); err == nil {
		t.Error("verified without keys")
	}
}

// Whatever byte of the packed records and hashes changes under a running log: what it serves is right, or an error..
func TestDamageIsNeverServed(t *testing.T) {
	t.Parallel()
	d, l := packedLog(t, 600)
	o, n := oracleOf(t, l), l.Signed()
	names := []string{"tile/0/000", "tile/0/001", "tile/1/000.p/2", "tile/entries/000", "tile/entries/001"}
	want := make(map[string][]byte)
	for _, name := range names {
		b, err := l.Tile(name)
		if err != nil {
			t.Fatal(err)
		}
		want[name] = b
	}
	root := o.root(t, n)
	serve := func(what string) (refused int) {
		for _, index := range []uint64{3, 300, 511} {
			p, err := l.ProveAt(index, 0)
			if err != nil {
				refused++
			} else if tlog.CheckRecord(p.Hashes, int64(n), root, int64(index), tlog.RecordHash(p.Record)) != nil {
				t.Errorf("%s: a wrong proof of %d", what, index)
			}
		}
		p, _, err := l.ProveConsistencyAt(259, 0)
		if err != nil {
			refused++
		} else if tlog.CheckTree(p, int64(n), root, 259, o.root(t, 259)) != nil {
			t.Errorf("%s: a wrong proof of consistency", what)
		}
		for _, name := range names {
			b, err := l.Tile(name)
			if err != nil {
				refused++
			} else if !bytes.Equal(b, want[name]) {
				t.Errorf("%s: a wrong %s", what, name)
			}
		}
		err = l.Read(context.Background(), 0, func(i uint64, r *Record) error {
			b, err := r.AppendBinary(nil)
			if err == nil && tlog.RecordHash(b) != o.hashes[tlog.StoredHashIndex(0, int64(i))] {
				t.Errorf("%s: a wrong record %d", what, i)
			}
			return err
		})
		if err != nil {
			refused++
		}
		return refused
	}
	if serve("nothing") > 0 {
		t.Fatal("refused without damage")
	}
	refused := 0
	files, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if !strings.HasPrefix(name, "level-") && !strings.HasPrefix(name, "data-") {
			continue
		}
		size := len(readSim(t, d, name))
		for off := 0; off < size; off += max(1, size/40) {
			old := readSim(t, d, name)[off : off+1]
			writeSim(t, d, name, off, []byte{old[0] ^ 4})
			refused += serve(fmt.Sprintf("%s at %d", name, off))
			writeSim(t, d, name, off, old)
		}
	}
	if refused < 100 {
		t.Errorf("only %d refusals: were these files read?", refused)
	}
	// A record and its leaf hash changed alike agree with each other, and not with what was signed.
	b, err := l.tiles.Record(511)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(readSim(t, d, "data-00000000"), b)
	changed := slices.Clone(b)
	changed[len(changed)-1] ^= 1
	writeSim(t, d, "data-00000000", at, changed)
	h := tlog.RecordHash(changed)
	writeSim(t, d, "level-0", 511*32, h[:])
	if b, err := l.tiles.Record(511); err != nil || !bytes.Equal(b, changed) {
		t.Fatalf("the store saw the change: %v", err) // else this proves nothing
	}
	if serve("record and leaf") == 0 {
		t.Error("nothing was refused")
	}
}

// A name that is no tile's, or of one that no checkpoint covers yet, has no tile.
func TestTilesThatAreNotThere(t *testing.T) {
	t.Parallel()
	_, l := packedLog(t, 300)
	mustAppend(t, l, operation("acme/p/ed25519/0", 1)) // durable, not signed
	last := int(l.Signed() % tiles.Width)
	for name, there := range map[string]bool{
		tiles.Path(0, 1, last): true, tiles.Path(0, 1, last+1): false, tiles.Path(tiles.Entries, 1, last): true, tiles.Path(tiles.Entries, 1, last+1): false,
		"tile/0/001.p/1": true, "tile/0/001": false, "tile/1/000.p/1": true, "tile/1/000.p/2": false, "tile/2/000.p/1": false, "tile/7/000.p/1": false,
		"tile/8/000.p/1": false, "tile/63/000.p/1": false, "tile/64/000.p/1": false, tiles.Path(0, 1<<56-1, 256): false, tiles.Path(63, 1<<56-1, 256): false,
		tiles.Path(1, 1<<40, 1): false,
		"tile/0/1":              false, "tile/0/000/": false, "tile/0//000": false, "tile/00/000": false, "/tile/0/000": false, "0/000": false,
		"tile/0/000.p/256": false, "tile/0/000.p/0": false, "tile/0/x000/000": false, "tile/-1/000": false, "tile/entries/../0/000": false,
		"tile/0/000\x00": false, "": false, "tile/": false,
	} {
		b, err := l.Tile(name)
		if there != (err == nil) || !there && !errors.Is(err, ErrBeyond) {
			t.Errorf("%q: %d bytes, %v", name, len(b), err)
		}
	}
}

func mustProveKey(tb testing.TB, l *Log, name string) *KeyProof {
	tb.Helper()
	p, err := l.ProveKey(context.Background(), name)
	if err != nil {
		tb.Fatal(err)
	}
	if err := VerifyKeyProof(p, testSet(tb)); err != nil {
		tb.Fatal(err)
	}
	return p
}

// How many records a key has is proved at once: after an opening without news, for a key that is new, in memory too..
func TestProveKey(t *testing.T) {
	t.Parallel()
	memory := func(t *testing.T) *Log {
		l, err := NewMemory(testOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	disk := func(t *testing.T) *Log {
		_, l := newSimLog(t, testOptions(t))
		t.Cleanup(func() { l.Close() })
		return l
	}
	for name, open := range map[string]func(*testing.T) *Log{"memory": memory, "disk": disk} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t)
			if _, err := l.ProveKey(context.Background(), "acme/p/ed25519/0"); !errors.Is(err, ErrNoKey) {
				t.Fatalf("a key without records: %v", err)
			}
			var last Receipt
			for i := range 5 {
				mustAppend(t, l, operation("acme/p/ed25519/1", i))
				last = mustAppend(t, l, operation("acme/p/ed25519/0", i))[0]
			}
			p := mustProveKey(t, l, "acme/p/ed25519/0")
			if p.State.Seq != 5 || p.State.Last != last.Index+1 || p.Keys != 2 || p.Size < p.State.Last || p.Map.Index < p.Size {
				t.Fatalf("%+v", p)
			}
			// Within ten seconds the map stands; what it says stays true and is of the size it names.
			mustAppend(t, l, operation("acme/p/ed25519/0", 6))
			if q := mustProveKey(t, l, "acme/p/ed25519/0"); q.Size < p.Size || q.State.Seq < 5 {
				t.Errorf("%+v after %+v", q, p)
			}
			mustAppend(t, l, operation("acme/p/ed25519/2", 0))
			if q := mustProveKey(t, l, "acme/p/ed25519/2"); q.State.Seq != 1 || q.Keys != 3 || q.Size <= p.Size {
				t.Errorf("a new key: %+v", q)
			}
			if q := mustProveKey(t, l, "acme/p/ed25519/0"); q.State.Seq != 6 {
				t.Errorf("%d records, 6 were written", q.State.Seq)
			}
		})
	}
	t.Run("reopened", func(t *testing.T) {
		t.Parallel()
		_, l := packedLog(t, 70)
		if p := mustProveKey(t, l, "acme/p/ed25519/3"); p.State.Seq != 10 || p.Keys != 7 {
			t.Errorf("%+v", p)
		}
		size := l.Size()
		mustProveKey(t, l, "acme/p/ed25519/4")
		if l.Size() != size {
			t.Error("a second question wrote records")
		}
	})
}

// Nothing of a key proof can be changed, and no other record stands for the map's.
func TestKeyProofNegatives(t *testing.T) {
	t.Parallel()
	_, l := packedLog(t, 300)
	good := mustProveKey(t, l, "acme/p/ed25519/3")
	other, err := l.Prove(3)
	if err != nil {
		t.Fatal(err)
	}
	earlier := good.Map.Index
	for name, edit := range map[string]func(*KeyProof){
		"another key":    func(p *KeyProof) { p.Name = "acme/p/ed25519/4" },
		"fewer":          func(p *KeyProof) { p.State.Seq-- },
		"more":           func(p *KeyProof) { p.State.Seq++ },
		"other last":     func(p *KeyProof) { p.State.Last-- },
		"other effect":   func(p *KeyProof) { p.State.Effect++ },
		"slot":           func(p *KeyProof) { p.Slot++ },
		"no slot":        func(p *KeyProof) { p.Slot = 1 << 31 },
		"keys":           func(p *KeyProof) { p.Keys++ },
		"earlier":        func(p *KeyProof) { p.Size-- },
		"later":          func(p *KeyProof) { p.Size++ },
		"root":           func(p *KeyProof) { p.Root[0] ^= 1 },
		"path":           func(p *KeyProof) { p.Path = slices.Clone(p.Path); p.Path[0][0] ^= 1 },
		"short path":     func(p *KeyProof) { p.Path = p.Path[1:] },
		"no map":         func(p *KeyProof) { p.Map = nil },
		"another record": func(p *KeyProof) { p.Map = other },
		"another place":  func(p *KeyProof) { m := *p.Map; m.Index = earlier - 1; p.Map = &m },
		"map record": func(p *KeyProof) {
			m := *p.Map
			m.Record = slices.Clone(m.Record)
			m.Record[len(m.Record)-1] ^= 1
			p.Map = &m
		},
	} {
		bad := *good
		edit(&bad)
		if err := VerifyKeyProof(&bad, testSet(t)); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	_, vkey, err := note.GenerateKey(nil, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := notekey.ParseSet(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyKeyProof(good, stranger); err == nil {
		t.Error("verified with another key")
	}
	if err := VerifyKeyProof(good, nil); err == nil {
		t.Error("verified without keys")
	}
}

// Who waits for a proof waits no longer than their context, the log, or its place on the disk lasts.
func TestProveKeyEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &failingSigner{Signer: testOptions(t).Signers[0]}
		o := testOptions(t)
		o.Signers[0] = s
		_, l := newSimLog(t, o)
		mustAppend(t, l, operation("acme/p/ed25519/0", 1))
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := l.ProveKey(gone, "acme/p/ed25519/0"); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that ended: %v", err)
		}
		s.broken.Store(true) // the checkpoint that it asks for fails, and the log with it
		if _, err := l.ProveKey(context.Background(), "acme/p/ed25519/0"); !errors.Is(err, ErrFailed) {
			t.Errorf("of a log that failed: %v", err)
		}
		l.Close()
	})
	l, err := NewMemory(testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, operation("acme/p/ed25519/0", 1))
	mustClose(t, l)
	if _, err := l.ProveKey(context.Background(), "acme/p/ed25519/1"); !errors.Is(err, ErrNoKey) {
		t.Errorf("of a closed log: %v", err)
	}
}

// Questions beside appends get answers that verify, and that never go back.
func TestProveKeyUnderLoad(t *testing.T) {
	t.Parallel()
	_, l := newSimLog(t, testOptions(t))
	defer l.Close()
	mustAppend(t, l, operation("acme/p/ed25519/0", 0))
	done := make(chan error, 1)
	go func() {
		for i := range 300 {
			if _, err := l.Append(context.Background(), operation(fmt.Sprintf("acme/p/ed25519/%d", i%50), i)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	var before uint64
	for i := range 20 {
		name := fmt.Sprintf("acme/p/ed25519/%d", i)
		p, err := l.ProveKey(context.Background(), name)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyKeyProof(p, testSet(t)); err != nil || p.Size < before {
			t.Fatalf("%s of %d records after %d: %v", name, p.Size, before, err)
		}
		before = p.Size
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
