package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rustyonions/ron-kms/audit/notekey"
	f_log "github.com/transparency-dev/formats/log"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
)

func TestMain(m *testing.M) {
	if os.Getenv(killEnv) != "" {
		killedChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// Many writers at once: positions and key sequences have no gap, every receipt tells the place of its record, and links
// lead through all records of a key..
func TestAppendConcurrent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	o := testOptions(t)
	o.CheckpointRecords = 100
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	l, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 64, 20
	type done struct {
		r  *Record
		at Receipt
	}
	results := make([][]done, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := operation(fmt.Sprintf("acme/signing/ed25519/%d", (w+i)%5), w*each+i)
				got, err := l.Append(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				results[w] = append(results[w], done{r, got[0]})
			}
		})
	}
	wg.Wait()
	mustClose(t, l)

	var found []*Record
	l, err = Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, l)
	if err := l.Read(context.Background(), 0, func(i uint64, r *Record) error {
		if i != uint64(len(found)) {
			t.Errorf("record %d came at place %d", i, len(found))
		}
		found = append(found, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	ops := 0
	seqs, last := map[string]uint64{}, map[string]uint64{}
	for i, r := range found {
		if r.Kind != KindOperation {
			continue
		}
		ops++
		seqs[r.Key]++
		if r.KeySeq != seqs[r.Key] || r.KeyPrev != last[r.Key] {
			t.Fatalf("record %d of %s: seq %d prev %d, want %d %d", i, r.Key, r.KeySeq, r.KeyPrev, seqs[r.Key], last[r.Key])
		}
		last[r.Key] = uint64(i) + 1
	}
	if ops != writers*each {
		t.Errorf("%d records, want %d", ops, writers*each)
	}
	for _, ds := range results {
		for _, d := range ds {
			a, _ := d.r.AppendBinary(nil)
			b, _ := found[d.at.Index].AppendBinary(nil)
			if string(a) != string(b) || d.at.KeySeq != d.r.KeySeq {
				t.Fatalf("receipt %+v is not of its record", d.at)
			}
		}
	}
}

// All records of one call stand together, and malformed ones leave no trace in the sequences. R-015.
func TestAppendTogetherOrNotAtAll(t *testing.T) {
	t.Parallel()
	_, l := newSimLog(t, testOptions(t))
	defer mustClose(t, l)
	before := l.Size()
	for name, bad := range map[string]*Record{
		"control":  {Kind: KindOperation, Op: "si\ngn"},
		"utf8":     {Kind: KindOperation, Op: "\xff"},
		"long":     {Kind: KindOperation, Op: strings.Repeat("x", 256)},
		"kid":      {Kind: KindOperation, Key: strings.Repeat("x", 641)},
		"detail":   {Kind: KindOperation, Detail: make([]byte, 65536)},
		"internal": {Kind: KindClose},
		"no kind":  {},
		"future":   {Kind: KindOperation, Ref: 1000},
		"year":     {Kind: KindOperation, Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if _, err := l.Append(context.Background(), operation("k", 1), bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if l.Size() != before {
		t.Errorf("size went from %d to %d", before, l.Size())
	}
	got := mustAppend(t, l, operation("k", 1), operation("k", 2), operation("j", 3))
	for i, want := range []uint64{1, 2, 1} {
		if got[i].Index != got[0].Index+uint64(i) || got[i].KeySeq != want {
			t.Errorf("receipt %d = %+v, want sequence %d", i, got[i], want)
		}
	}
}

// A caller gives up while it waits for room, and only then.
func TestAppendContext(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, testOptions(t))
	defer mustClose(t, l)
	ctx, cancel := context.WithCancel(context.Background())
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if op == "sync" && strings.HasPrefix(name, "seg-") {
			once.Do(func() { close(held); d.Mu.Unlock(); <-hold; d.Mu.Lock() })
		}
		return n, nil
	}
	d.Mu.Unlock()
	var wg sync.WaitGroup
	big := func() *Record { return &Record{Kind: KindNoise, Count: 1, Detail: make([]byte, 30000)} }
	wg.Go(func() { mustAppend(t, l, big()) })
	<-held
	// Two fill the next commit; the third waits for room.
	for range 2 {
		wg.Go(func() { mustAppend(t, l, big()) })
	}
	for {
		l.mu.Lock()
		n := l.cur.count
		l.mu.Unlock()
		if n == 2 {
			break
		}
		runtime.Gosched()
	}
	errs := make(chan error)
	go func() { _, err := l.Append(ctx, big()); errs <- err }()
	for {
		l.mu.Lock()
		n := l.room
		l.mu.Unlock()
		if n == 1 {
			break
		}
		runtime.Gosched()
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	close(hold)
	wg.Wait()
}

// Opening never creates, creating never overwrites, and one log has one writer. R-272.
func TestCeremony(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir := filepath.Join(t.TempDir(), "audit")
	if _, err := Open(context.Background(), dir, o); verdict(err) != VerdictMissing {
		t.Errorf("open of nothing: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("open created the directory")
	}
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, o); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	l, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), dir, o); !errors.Is(err, ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	mustClose(t, l)
	mustClose(t, l) // again does nothing
	if _, err := l.Append(context.Background(), operation("k", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if err := l.Err(); !errors.Is(err, ErrClosed) {
		t.Errorf("Err after close: %v", err)
	}
	for _, name := range []string{formatFile, headFile, checkpointFile, checkpointsName(0), segmentName(0)} {
		i, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, i.Mode())
		}
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "away")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), dir, o); verdict(err) != VerdictMissing {
			t.Errorf("open without %s: %v", name, err)
		}
		if err := os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, vkey, _ := note.GenerateKey(nil, testOrigin)
	wrong := o
	wrong.Keys, _ = notekey.ParseSet(vkey)
	if _, err := Open(context.Background(), dir, wrong); err == nil {
		t.Error("opened with a verifier of another key than the signer")
	}
	wrong = o
	wrong.MACKey = func(use func([]byte)) { use(make([]byte, 32)) }
	if _, err := Open(context.Background(), dir, wrong); verdict(err) == "" {
		t.Errorf("another mac key: %v", err)
	}
	wrong.MACKey = func(func([]byte)) {}
	if _, err := Open(context.Background(), dir, wrong); err == nil || verdict(err) != "" {
		t.Errorf("no mac key: %v", err)
	}
	if l, err = Open(context.Background(), dir, o); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// The log goes on in further segments, which are prepared ahead, across reopening. R-274.
func TestSegments(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	d, l := newSimLog(t, o)
	for round := range 3 {
		for i := range 300 {
			mustAppend(t, l, operation(fmt.Sprint("key", i%3), round))
		}
		n := uint64(0)
		if err := l.Read(context.Background(), 5, func(i uint64, r *Record) error {
			if i != n+5 {
				t.Fatalf("read %d, want %d", i, n+5)
			}
			n++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if n+5 != l.Size() {
			t.Errorf("read up to %d of %d", n+5, l.Size())
		}
		mustClose(t, l)
		for _, mac := range []bool{false, true} {
			rep, err := verifySim(d, o.Keys, mac)
			if err != nil {
				t.Fatal(err)
			}
			if rep.Size != l.Size() || rep.Ops["sign"]["ok"] != uint64(300*(round+1)) || !rep.Clean || rep.Keys != 3 || rep.Unsigned != 0 {
				t.Errorf("report %+v", rep)
			}
		}
		l = openSim(t, d, o)
	}
	if n := len(d.Segments()); n < 3 {
		t.Errorf("%d segments", n)
	}
	mustClose(t, l)
}

// Checkpoints come with time and with records; an idle log signs its silence; each is named by the tree..
func TestCheckpointCadence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(t)
		o.CheckpointInterval, o.Heartbeat, o.CheckpointRecords = time.Second, time.Minute, 50
		d, l := newSimLog(t, o)
		size := func() uint64 {
			c, err := parseCheckpoint(l.Checkpoint(), testOrigin)
			if err != nil {
				t.Fatal(err)
			}
			return c.size
		}
		mustAppend(t, l, operation("k", 1))
		if size() == l.Size() {
			t.Error("checkpoint before its time")
		}
		time.Sleep(1001 * time.Millisecond)
		synctest.Wait()
		if size() != l.Size() {
			t.Errorf("after a second: checkpoint over %d of %d", size(), l.Size())
		}
		for i := range 60 {
			mustAppend(t, l, operation("k", i))
		}
		synctest.Wait()
		if n := size(); n+20 < l.Size() {
			t.Errorf("after 60 records: checkpoint over %d of %d", n, l.Size())
		}
		time.Sleep(12 * time.Second) // the key map is named too
		synctest.Wait()
		idle, at := l.Size(), size()
		time.Sleep(47 * time.Second)
		synctest.Wait()
		if l.Size() != idle || size() != at {
			t.Error("an idle log wrote before its heartbeat")
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got := size() - at; got != 3 && got != 4 {
			t.Errorf("three minutes of silence signed %d times", got)
		}
		mustClose(t, l)
		rep, err := verifySim(d, o.Keys, true)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Kinds[KindCheckpoint]+rep.Kinds[KindOpen]+1 != rep.Checkpoints || rep.Checkpoints < 7 {
			t.Errorf("%d checkpoints, %d records name one", rep.Checkpoints, rep.Kinds[KindCheckpoint]+rep.Kinds[KindOpen])
		}
	})
}

// A slow disk never holds up Offer; what did not fit is counted in a record. D-8.
func TestOffer(t *testing.T) {
	t.Parallel()
	d, l := newSimLog(t, testOptions(t))
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.Mu.Lock()
	d.Fail = func(op, name string, n int) (int, error) {
		if op == "sync" && strings.HasPrefix(name, "seg-") {
			once.Do(func() { close(held); d.Mu.Unlock(); <-hold; d.Mu.Lock() })
		}
		return n, nil
	}
	d.Mu.Unlock()
	l.Offer(&Record{Kind: KindOperation, Op: "verify", Result: "ok"})
	<-held
	const n = offerQueue + 500
	for range n {
		l.Offer(&Record{Kind: KindOperation, Op: "verify", Result: "ok"})
	}
	l.Offer(&Record{Kind: KindClose}) // not a caller's
	lost := l.Lost()
	if lost != 501 {
		t.Errorf("lost %d, want 501", lost)
	}
	close(hold)
	mustClose(t, l)
	rep, err := verifySim(d, testSet(t), true)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Gaps != 501 || rep.Ops["verify"]["ok"] != 1+offerQueue || l.Lost() != 0 {
		t.Errorf("gaps %d, verified %d, lost %d", rep.Gaps, rep.Ops["verify"]["ok"], l.Lost())
	}
}

// A memory log gives the same receipts and checkpoints, and keeps a bounded number of records.
func TestMemory(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	_, disk := newSimLog(t, o)
	mem, err := NewMemory(o)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		key := fmt.Sprint("k", rng.IntN(4))
		a, b := mustAppend(t, disk, operation(key, i))[0], mustAppend(t, mem, operation(key, i))[0]
		if a != b {
			t.Fatalf("disk %+v, memory %+v", a, b)
		}
	}
	many := make([]*Record, 500)
	for range memoryRecords/len(many) + 2 {
		for i := range many {
			many[i] = &Record{Kind: KindNoise, Count: 1}
		}
		mustAppend(t, mem, many...)
	}
	if err := mem.Read(context.Background(), 0, func(uint64, *Record) error { return nil }); !errors.Is(err, ErrNotKept) {
		t.Errorf("read of old records: %v", err)
	}
	n := 0
	if err := mem.Read(context.Background(), mem.Size()-10, func(uint64, *Record) error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("read %d: %v", n, err)
	}
	mustClose(t, mem)
	mustClose(t, disk)
	if _, _, _, err := f_log.ParseCheckpoint(mem.Checkpoint(), testOrigin, foreignVerifier(t)); err != nil {
		t.Error(err)
	}
}

// Verify may run beside the writer without a false alarm. R-273.
func TestVerifyLive(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	o := testOptions(t)
	o.CheckpointInterval, o.CheckpointRecords = time.Millisecond, 20
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	l, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					mustAppend(t, l, operation(fmt.Sprint("k", w), i))
				}
			}
		})
	}
	for i := range 20 {
		vo := VerifyOptions{Keys: o.Keys}
		if i%2 == 0 {
			vo.MACKey = testMAC
		}
		if rep, err := Verify(context.Background(), dir, vo); err != nil || rep.Clean {
			t.Errorf("clean %v: %v", rep.Clean, err)
			break
		}
	}
	close(stop)
	wg.Wait()
	mustClose(t, l)
	rep, err := Verify(context.Background(), dir, VerifyOptions{Keys: o.Keys})
	if err != nil || !rep.Clean || rep.Size != l.Size() || rep.Authenticated {
		t.Errorf("after close: %+v: %v", rep, err)
	}
	_, vkey, _ := note.GenerateKey(nil, testOrigin)
	wrong, _ := notekey.ParseSet(vkey)
	if _, err := Verify(context.Background(), dir, VerifyOptions{Keys: wrong}); verdict(err) == "" {
		t.Errorf("another key: %v", err)
	}
}

// The format file has one way to be written.
func TestParseFormat(t *testing.T) {
	t.Parallel()
	f := &format{id: [16]byte{1}, origin: "a", keys: "a+00000000", segment: minSegmentSize}
	good := string(f.encode())
	if got, err := parseFormat([]byte(good)); err != nil || got.id != f.id || got.segment != f.segment {
		t.Fatalf("%+v: %v", got, err)
	}
	for _, bad := range []string{
		"", good + "\n", good[:len(good)-1], strings.ToUpper(good), strings.Replace(good, "log 2", "log 1", 1),
		strings.Replace(good, "65536", "065536", 1), strings.Replace(good, "65536", "65537", 1), strings.Replace(good, "65536", "1024", 1),
		strings.Replace(good, "origin a", "a", 1), strings.Replace(good, "id 01", "id 0", 1), strings.Replace(good, "id 01", "id  01", 1),
	} {
		if _, err := parseFormat([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}
