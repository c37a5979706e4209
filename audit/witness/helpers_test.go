package witness

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

// A testLog is a log whose tree and proofs come from x/mod/sumdb/tlog, and not from the library that the witness uses.
type testLog struct {
	origin  string
	signers []note.Signer
	vkeys   []string
	hashes  []tlog.Hash
	n       int64
}

func newTestLog(tb testing.TB, origin string, hybrid bool) *testLog {
	tb.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	l := &testLog{origin: origin, signers: []note.Signer{s}, vkeys: []string{vkey}}
	if hybrid {
		skey, vkey, err := fnote.GenerateMLDSAKey(origin)
		if err != nil {
			tb.Fatal(err)
		}
		s, err := fnote.NewMLDSASigner(skey)
		if err != nil {
			tb.Fatal(err)
		}
		l.signers, l.vkeys = append(l.signers, s), append(l.vkeys, vkey)
	}
	return l
}

func (l *testLog) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = l.hashes[x]
		}
		return out, nil
	})
}

// grow appends records up to n. Logs that call themselves differently differ in every record.
func (l *testLog) grow(n int64, kind string) *testLog {
	for ; l.n < n; l.n++ {
		h, err := tlog.StoredHashes(l.n, fmt.Appendf(nil, "%s %d", kind, l.n), l.reader())
		if err != nil {
			panic(err)
		}
		l.hashes = append(l.hashes, h...)
	}
	return l
}

// fork is a log of the same keys that goes another way after n records, and has as many in the end.
func (l *testLog) fork(n int64) *testLog {
	f := *l
	f.n, f.hashes = n, slices.Clone(l.hashes[:tlog.StoredHashCount(n)])
	return f.grow(l.n, "other")
}

func (l *testLog) text(size int64) string {
	root, err := tlog.TreeHash(size, l.reader())
	if err != nil {
		panic(err)
	}
	return head{l.origin, uint64(size), root}.text()
}

func (l *testLog) checkpoint(size int64) []byte { return signNote(l.text(size), l.signers...) }

func signNote(text string, signers ...note.Signer) []byte {
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		panic(err)
	}
	return b
}

func (l *testLog) prove(size int64) func(uint64) ([][32]byte, error) {
	return func(old uint64) ([][32]byte, error) {
		if old == 0 || old >= uint64(size) {
			return nil, errors.New("asked for a proof that needs none, or that cannot be")
		}
		p, err := tlog.ProveTree(size, int64(old), l.reader())
		if err != nil {
			return nil, err
		}
		out := make([][32]byte, len(p))
		for i := range p {
			out[i] = p[i]
		}
		return out, nil
	}
}

// body is a request as a log that behaves would make it.
func (l *testLog) body(old, size int64) string {
	r := request{old: uint64(old), checkpoint: l.checkpoint(size)}
	if old > 0 && old < size {
		p, err := l.prove(size)(uint64(old))
		if err != nil {
			panic(err)
		}
		for i := range p {
			r.proof = append(r.proof, p[i][:])
		}
	}
	return string(r.encode())
}

// newDir makes a witness that knows the logs.
func newDir(tb testing.TB, logs ...*testLog) (dir, vkey string) {
	tb.Helper()
	dir = filepath.Join(tb.TempDir(), "witness")
	vkey, err := Init(dir, "witness.example/w1")
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range logs {
		if err := AddLog(dir, "", l.vkeys); err != nil {
			tb.Fatal(err)
		}
	}
	return dir, vkey
}

func mustOpen(tb testing.TB, dir string) *Server {
	tb.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() }) // some tests close it before
	return s
}

// listen serves s on loopback and returns a client of it.
func listen(tb testing.TB, s http.Handler, vkey string) (*Client, string) {
	tb.Helper()
	h := httptest.NewServer(s)
	tb.Cleanup(h.Close)
	c, err := NewClient(vkey, h.URL, ClientOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c, h.URL
}

// post gives a request to the handler without a network.
func post(s http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return w
}

func mustAdd(tb testing.TB, c *Client, l *testLog, old, size int64) []byte {
	tb.Helper()
	lines, err := c.Add(context.Background(), uint64(old), l.prove(size), l.checkpoint(size))
	if err != nil {
		tb.Fatalf("old %d, size %d: %v", old, size, err)
	}
	return lines
}

// stateSize is what the directory says that the witness last saw of a log.
func stateSize(tb testing.TB, dir, origin string) uint64 {
	tb.Helper()
	_, logs, err := Read(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range logs {
		if l.Origin == origin {
			return l.Size
		}
	}
	tb.Fatalf("no log %s", origin)
	return 0
}

// newSim makes a witness on a simulated disk.
func newSim(tb testing.TB, logs ...*testLog) *fsystest.Disk {
	tb.Helper()
	dir, _ := newDir(tb, logs...)
	d := fsystest.New()
	for _, name := range list(tb, dir) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			tb.Fatal(err)
		}
		if err := fsys.ReplaceFile(d, name, b); err != nil {
			tb.Fatal(err)
		}
	}
	return d
}

func mustOpenSim(tb testing.TB, d *fsystest.Disk) *Server {
	tb.Helper()
	s, err := open(d, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func list(tb testing.TB, dir string) (names []string) {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
