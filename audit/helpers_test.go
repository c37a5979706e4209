package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

const testOrigin = "kms.example/audit/1"

// testKeys is the one signing key of all tests, made from fixed bytes.
var testKeys = sync.OnceValues(func() (skey, vkey string) {
	skey, vkey, err := note.GenerateKey(strings.NewReader(strings.Repeat("test seed for the audit package ", 4)), testOrigin)
	if err != nil {
		panic(err)
	}
	return skey, vkey
})

func testMAC(use func([]byte)) {
	key := sha256.Sum256([]byte("test mac key"))
	use(key[:])
}

func testSet(tb testing.TB) *notekey.Set {
	_, vkey := testKeys()
	s, err := notekey.ParseSet(vkey)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func testOptions(tb testing.TB) Options {
	skey, _ := testKeys()
	s, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	return Options{
		Origin: testOrigin, Signers: []note.Signer{s}, Keys: testSet(tb), MACKey: testMAC, SegmentSize: minSegmentSize, RingSegments: maxSegments,
		// Checkpoints come when a test asks for them.
		CheckpointInterval: time.Hour, CheckpointRecords: 1 << 30, Heartbeat: time.Hour,
	}
}

func operation(key string, n int) *Record {
	return &Record{Kind: KindOperation, Op: "sign", Tenant: "acme", Key: key, KeyVersion: 1, Alg: "ed25519", Purpose: "signing",
		InputHash: sha256.Sum256(fmt.Append(nil, n)), Result: "ok", Actor: "cap-1"}
}

func mustAppend(tb testing.TB, l *Log, recs ...*Record) []Receipt {
	tb.Helper()
	got, err := l.Append(context.Background(), recs...)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// newSimLog creates and opens a log on a simulated disk.
func newSimLog(tb testing.TB, o Options) (*fsystest.Disk, *Log) {
	tb.Helper()
	d := fsystest.New()
	o2, err := o.withDefaults(true)
	if err != nil {
		tb.Fatal(err)
	}
	if err := createIn(d, o2); err != nil {
		tb.Fatal(err)
	}
	return d, openSim(tb, d, o)
}

func openSim(tb testing.TB, d *fsystest.Disk, o Options) *Log {
	tb.Helper()
	l, err := tryOpenSim(d, o)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func tryOpenSim(d *fsystest.Disk, o Options) (*Log, error) {
	o, err := o.withDefaults(true)
	if err != nil {
		return nil, err
	}
	return openIn(context.Background(), d, o)
}

// unpacked returns d as if no snapshot had been made after its creation: all records are in the ring alone. It is a state that a
// crash leaves, as long as no segment was recycled.
func unpacked(tb testing.TB, d *fsystest.Disk, o Options) *fsystest.Disk {
	tb.Helper()
	c := d.Killed()
	f, err := parseFormat(c.Files[formatFile].Data)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := (&snapshot{at: position{tag: f.sum}}).encode(f.id, nil, borrowedMAC(o.MACKey))
	if err != nil {
		tb.Fatal(err)
	}
	c.Files[snapshotFile] = &fsystest.File{Data: b, Durable: bytes.Clone(b)}
	for name := range c.Files {
		if strings.HasPrefix(name, "level-") || strings.HasPrefix(name, "data-") {
			delete(c.Files, name)
		}
	}
	if c.Files[segmentName(0)] == nil {
		tb.Fatal("the first segment is gone")
	}
	return c
}

func mustClose(tb testing.TB, l *Log) {
	tb.Helper()
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
}

// verdict returns the verdict in err, or "" if it has none.
func verdict(err error) Verdict {
	var ie *IntegrityError
	if errors.As(err, &ie) {
		return ie.Verdict
	}
	return ""
}

// verifySim verifies d with and without the MAC key.
func verifySim(d *fsystest.Disk, keys *notekey.Set, mac bool) (*Report, error) {
	o := VerifyOptions{Keys: keys}
	if mac {
		o.MACKey = testMAC
	}
	return verifyIn(context.Background(), d, o)
}

// frames returns the place of every frame of d.
type place struct {
	seg  string
	off  int
	n    int
	recs uint64
}

func framesOf(tb testing.TB, d *fsystest.Disk) []place {
	tb.Helper()
	var ps []place
	for _, seg := range d.Segments() {
		b := d.Files[seg].Data
		for off := 0; off < len(b); {
			f, err := parseFrame(b[off:], maxFrame)
			if err != nil {
				break
			}
			ps = append(ps, place{seg, off, f.length, uint64(len(f.records))})
			off += f.length
		}
	}
	return ps
}

func wipe(d *fsystest.Disk, p place) { clear(d.Files[p.seg].Data[p.off : p.off+p.n]) }

func bytesAt(d *fsystest.Disk, p place) []byte {
	return bytes.Clone(d.Files[p.seg].Data[p.off : p.off+p.n])
}

// recoveries returns the KindRecovery records of l.
func recoveries(tb testing.TB, l *Log) []*Record {
	tb.Helper()
	var rs []*Record
	err := l.Read(context.Background(), 0, func(_ uint64, r *Record) error {
		if r.Kind == KindRecovery {
			rs = append(rs, r)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return rs
}

// failingSigner can be made to refuse.
type failingSigner struct {
	note.Signer
	broken atomic.Bool
}

func (s *failingSigner) Sign(msg []byte) ([]byte, error) {
	if s.broken.Load() {
		return nil, errInjected
	}
	return s.Signer.Sign(msg)
}

var errInjected = errors.New("injected")

// foreignVerifier is the log's key as package note knows it.
func foreignVerifier(tb testing.TB) note.Verifier {
	_, vkey := testKeys()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// framesBySegment groups ps by the segment they stand in.
func framesBySegment(ps []place) map[string][]place {
	m := make(map[string][]place)
	for _, p := range ps {
		m[p.seg] = append(m[p.seg], p)
	}
	return m
}
