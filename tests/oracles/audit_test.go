package oracles

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/mldsa"
	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	fproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

const auditOrigin = "ron-kms/audit/oracle"

// exportedRecords is more than a volume, a tile of level 1, and many bundles; the last ones are partial.
const exportedRecords = 70_000

// An exportedLog is an export of a real log with hybrid keys.
type exportedLog struct {
	dir   string
	keys  *notekey.Set
	size  uint64
	older []byte // an earlier checkpoint
	proof []byte // tlog-proof of record 12345
}

// exportBase is the folder of the export that the tests share, "" until one asks for it.
var exportBase string

var anExport = sync.OnceValues(func() (e *exportedLog, err error) {
	if exportBase, err = os.MkdirTemp("", "ron-kms-oracle-"); err != nil {
		return nil, err
	}
	return makeExport(exportBase)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if exportBase != "" {
		os.RemoveAll(exportBase)
	}
	os.Exit(code)
}

func makeExport(base string) (*exportedLog, error) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	ed, err := notekey.NewEd25519(auditOrigin, edKey.Public().(ed25519.PublicKey), func(msg []byte) ([]byte, error) { return ed25519.Sign(edKey, msg), nil })
	if err != nil {
		return nil, err
	}
	mlKey, err := mldsa.GenerateKey(mldsa.MLDSA44())
	if err != nil {
		return nil, err
	}
	ml, err := notekey.NewMLDSA44(auditOrigin, mlKey.PublicKey().Bytes(), func(msg []byte) ([]byte, error) { return mlKey.Sign(nil, msg, &mldsa.Options{}) }, time.Now)
	if err != nil {
		return nil, err
	}
	keys, err := notekey.NewSet(ed.Verifier(), ml.Verifier())
	if err != nil {
		return nil, err
	}
	o := audit.Options{Origin: auditOrigin, Signers: []note.Signer{ed, ml}, Keys: keys, MACKey: func(use func([]byte)) { use(make([]byte, 32)) },
		SegmentSize: 1 << 20, CheckpointRecords: 20_000}
	log := filepath.Join(base, "log")
	if err := audit.Create(log, o); err != nil {
		return nil, err
	}
	ctx := context.Background()
	l, err := audit.Open(ctx, log, o)
	if err != nil {
		return nil, err
	}
	e := &exportedLog{dir: filepath.Join(base, "export"), keys: keys}
	for l.Size() < exportedRecords {
		recs := make([]*audit.Record, 700)
		for i := range recs {
			recs[i] = &audit.Record{Kind: audit.KindOperation, Op: "sign", Tenant: "t", Key: fmt.Sprint("t/k", i%50), Result: audit.ResultOK}
		}
		if _, err := l.Append(ctx, recs...); err != nil {
			return nil, err
		}
		if e.older == nil && l.Size() > 30_000 {
			e.older = l.Checkpoint()
		}
	}
	if err := l.Close(); err != nil {
		return nil, err
	}
	r, err := audit.OpenReader(ctx, log, audit.VerifyOptions{Keys: keys})
	if err != nil {
		return nil, err
	}
	e.size = r.Signed()
	err = r.Export(ctx, e.dir, audit.ExportOptions{})
	if err == nil {
		var p *audit.Proof
		if p, err = r.Prove(12345); err == nil {
			e.proof = p.TLogProof()
		}
	}
	return e, errors.Join(err, r.Close())
}

func mustExport(t *testing.T) *exportedLog {
	t.Helper()
	e, err := anExport()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// verifiers are the log's keys as libraries of others read them: Ed25519 and ML-DSA-44.
func (e *exportedLog) verifiers(t *testing.T) (ed, ml note.Verifier) {
	t.Helper()
	vkeys := strings.Fields(e.keys.String())
	ed, err := note.NewVerifier(vkeys[0])
	if err != nil {
		t.Fatal(err)
	}
	if ml, err = fnote.NewVerifier(vkeys[1]); err != nil {
		t.Fatal(err)
	}
	return ed, ml
}

func (e *exportedLog) checkpoint(t *testing.T, raw []byte) *flog.Checkpoint {
	t.Helper()
	ed, ml := e.verifiers(t)
	c, _, n, err := flog.ParseCheckpoint(raw, auditOrigin, ed, ml)
	if err != nil || len(n.Sigs) != 2 || len(n.UnverifiedSigs) != 0 {
		t.Fatalf("checkpoint: %v", err)
	}
	return c
}

func (e *exportedLog) latest(t *testing.T) *flog.Checkpoint {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(e.dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	return e.checkpoint(t, raw)
}

// splitBundle is an entry bundle of tlog-tiles, read as its specification says.
func splitBundle(b []byte) (leaves [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("a bundle is cut short")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		leaves = append(leaves, rfc6962.DefaultHasher.HashLeaf(b[2:n]))
		b = b[n:]
	}
	return leaves, nil
}

// runFsck has the whole export checked by tessera. With fewer workers than changed tiles it would wait for ever.
func runFsck(t *testing.T, e *exportedLog, dir string) error {
	t.Helper()
	ed, _ := e.verifiers(t)
	done := make(chan error, 1)
	go func() {
		done <- fsck.New(auditOrigin, ed, client.FileFetcher{Root: dir}, splitBundle, fsck.Opts{N: 16}).Check(t.Context())
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("fsck does not end")
		return nil
	}
}

// Tessera's client and fsck, sumdb/tlog and formats/log accept an exported log: both signatures, every record and tile, inclusion
// and consistency proofs, and a tlog-proof.
func TestExportedLog(t *testing.T) {
	t.Parallel()
	e := mustExport(t)
	c := e.latest(t)
	if c.Size != e.size || c.Size < exportedRecords {
		t.Fatalf("%d records", c.Size)
	}
	if err := runFsck(t, e, e.dir); err != nil {
		t.Errorf("fsck: %v", err)
	}

	h := httptest.NewServer(http.FileServer(http.Dir(e.dir)))
	defer h.Close()
	u, err := url.Parse(h.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	f, err := client.NewHTTPFetcher(u, h.Client())
	if err != nil {
		t.Fatal(err)
	}
	b, err := client.NewProofBuilder(t.Context(), c.Size, f.ReadTile)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{0, 1, 255, 256, 12345, 65535, 65536, c.Size - 1} {
		bundle, err := client.GetEntryBundle(t.Context(), f.ReadEntryBundle, i/256, c.Size)
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.InclusionProof(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		leaf := rfc6962.DefaultHasher.HashLeaf(bundle.Entries[i%256])
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, c.Size, leaf, p, c.Hash); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	older := e.checkpoint(t, e.older)
	p, err := b.ConsistencyProof(t.Context(), older.Size, c.Size)
	if err == nil {
		err = proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, c.Size, p, older.Hash, c.Hash)
	}
	if err != nil {
		t.Errorf("consistency from %d: %v", older.Size, err)
	}

	tree := tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Hash)}
	r := tlog.TileHashReader(tree, sumdbTiles{e.dir})
	rp, err := tlog.ProveRecord(tree.N, 12345, r)
	if err != nil {
		t.Fatal(err)
	}
	var tp fproof.TLogProof
	if err := tp.Unmarshal(e.proof); err != nil {
		t.Fatal(err)
	}
	e.checkpoint(t, tp.Checkpoint)
	if err := tlog.CheckRecord(rp, tree.N, tree.Hash, 12345, tlog.RecordHash(tp.ExtraData)); err != nil {
		t.Error(err)
	}
	if tp.Index != 12345 || len(tp.Hashes) != len(rp) {
		t.Fatalf("tlog-proof of record %d with %d hashes", tp.Index, len(tp.Hashes))
	}
	for i := range rp {
		if tlog.Hash(tp.Hashes[i]) != rp[i] {
			t.Errorf("hash %d of the tlog-proof is another", i)
		}
	}
	ct, err := tlog.ProveTree(tree.N, int64(older.Size), r)
	if err == nil {
		err = tlog.CheckTree(ct, tree.N, tree.Hash, int64(older.Size), tlog.Hash(older.Hash))
	}
	if err != nil {
		t.Errorf("sumdb consistency: %v", err)
	}
	rep, err := audit.VerifyExport(t.Context(), e.dir, audit.VerifyOptions{Keys: e.keys, Against: [][]byte{e.older}})
	if err != nil || rep.Keys != 50 {
		t.Errorf("our verifier: %v", err)
	}
}

// sumdbTiles reads an export as sumdb/tlog asks for tiles, whose names there have their height in front.
type sumdbTiles struct{ dir string }

func (sumdbTiles) Height() int                     { return 8 }
func (sumdbTiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (s sumdbTiles) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		name := strings.Replace(t.Path(), "tile/8/", "tile/", 1)
		b, err := os.ReadFile(filepath.Join(s.dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

// One flipped bit in a record, in a tile of any level or in the checkpoint is refused by our verifier and by fsck alike. R-014
func TestExportedLogTampered(t *testing.T) {
	t.Parallel()
	e := mustExport(t)
	dir := filepath.Join(t.TempDir(), "export")
	if err := os.CopyFS(dir, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tile/entries/000", "tile/entries/100", "tile/0/000", "tile/0/255", "tile/1/000", "tile/2/000.p/1", "checkpoint"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c := bytes.Clone(b)
		c[len(c)/2] ^= 1
		if name == "checkpoint" { // fsck knows one of the two signatures: change what both are over
			c = bytes.Clone(b)
			c[bytes.IndexByte(c, '\n')+1] ^= 1
		}
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		var verdict *audit.IntegrityError
		if _, err := audit.VerifyExport(t.Context(), dir, audit.VerifyOptions{Keys: e.keys}); !errors.As(err, &verdict) {
			t.Errorf("%s: our verifier: %v", name, err)
		}
		if err := runFsck(t, e, dir); err == nil {
			t.Errorf("%s: fsck finds nothing", name)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := runFsck(t, e, dir); err != nil {
		t.Errorf("all put back: %v", err)
	}
}
