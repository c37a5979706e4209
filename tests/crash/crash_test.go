package crash

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/coretest"
)

// workerVariable makes the test binary a worker on the store that it names.
const workerVariable = "CRASH_TEST_WORKER"

func TestMain(m *testing.M) {
	if dir, seed, ok := strings.Cut(os.Getenv(workerVariable), "|"); ok {
		n, err := strconv.ParseUint(seed, 10, 64)
		if err != nil {
			panic(err)
		}
		runWorker(dir, n)
	}
	os.Exit(m.Run())
}

// kills is how many times the store is killed: RONKMS_KILLS, or 200, or less
// where time is short.
func kills(t *testing.T) int {
	if v := os.Getenv("RONKMS_KILLS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("RONKMS_KILLS=%q is not a number of kills", v)
		}
		return n
	}
	switch {
	case os.Getenv("RONKMS_SOAK") == "1":
		return 1000
	case raceEnabled || testing.Short():
		return 25
	}
	return 200
}

// kill -9 at random points, over and over, on a store that is never closed:
// nothing that was acknowledged is lost, nothing happens twice, and the audit
// log has a record of all of it..
func TestKillNine(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("RONKMS_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("RONKMS_SEED=%q is not a number", v)
		}
		seed = n
	}
	dir, err := os.MkdirTemp("", "ron-kms-crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("RONKMS_SEED=%d; the store is kept in %s", seed, dir)
		} else {
			os.RemoveAll(dir)
		}
	})
	cfg := storeConfig(filepath.Join(dir, "store"))
	report, err := core.Init(context.Background(), cfg, []byte(coretest.Passphrase), core.InitOptions{WorkFactor: coretest.WorkFactor})
	if err != nil {
		t.Fatal(err)
	}
	p := &parent{t: t, dir: cfg.Dir, rng: rand.New(rand.NewPCG(seed, 0)), tries: make(map[string]entry)}
	n := kills(t)
	for i := range n {
		p.round(i)
		if t.Failed() {
			return
		}
		if i%50 == 49 {
			p.audit(coretest.Audit(t, cfg, report.VerifierKey))
		}
	}
	p.everything()
	p.audit(coretest.Audit(t, cfg, report.VerifierKey))
	slices.Sort(p.opens)
	t.Logf("%d kills: %d mutations and %d signatures acknowledged, %d tries left open and settled; opening took %.0f ms (median), %.0f ms (longest)",
		n, len(p.mutations), len(p.signatures), p.settled, p.opens[len(p.opens)/2], p.opens[len(p.opens)-1])
	if len(p.mutations) < n || len(p.signatures) < n {
		t.Errorf("only %d mutations and %d signatures in %d kills: the test does not test much", len(p.mutations), len(p.signatures), n)
	}
}

// parent remembers what the workers acknowledged.
type parent struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	tries map[string]entry // begun, not acknowledged

	mutations, signatures []entry
	checked               [2]int // how many of each have been checked once
	settled               int
	opens                 []float64
}

// journal is what the next worker has to check: all that is new, some of what
// is old, and what was left open.
func (p *parent) journal(all bool) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	put := func(e entry) {
		if err := enc.Encode(e); err != nil {
			p.t.Fatal(err)
		}
	}
	for _, e := range p.tries {
		put(e)
	}
	for i, list := range [][]entry{p.mutations, p.signatures} {
		from := p.checked[i]
		if all {
			from = 0
		}
		for _, e := range list[from:] {
			put(e)
		}
		for range min(from, 10) {
			put(list[p.rng.IntN(from)])
		}
	}
	return b.Bytes()
}

// round starts a worker and kills it: mostly while it works, sometimes while
// it opens the store or checks.
func (p *parent) round(i int) {
	early := i%10 == 7
	p.run(false, early, 1+p.rng.IntN(40), time.Duration(p.rng.IntN(3000))*time.Microsecond)
}

// everything lets a last worker check all there ever was.
func (p *parent) everything() { p.run(true, false, 1, 0) }

// run starts a worker, reads after acknowledgements beyond those of the check,
// waits a moment longer and kills it.
func (p *parent) run(all, early bool, after int, longer time.Duration) {
	t := p.t
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), workerVariable+"="+p.dir+"|"+strconv.FormatUint(p.rng.Uint64(), 10))
	cmd.Stdin = bytes.NewReader(p.journal(all))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	had := [2]int{len(p.mutations), len(p.signatures)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			time.Sleep(longer) // what the worker is doing when it dies is left to chance
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if early {
		longer *= 10
		kill()
	}
	checked := false
	in := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break // a line cut short was not acknowledged
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("line %q: %v", line, err)
			break
		}
		switch e.Kind {
		case "open":
			p.opens = append(p.opens, e.MS)
		case "checked":
			checked = true
		case "fail":
			t.Errorf("worker: %s", e.Text)
		case "try":
			p.tries[e.ID] = e
		case "ack":
			p.acknowledged(e, checked)
			if after--; checked && after <= 0 {
				kill()
			}
		}
	}
	kill()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() > 0 || stderr.Len() > 0 {
		t.Errorf("the worker ended on its own: %v\n%s", err, stderr.Bytes())
	}
	if checked {
		p.checked = had
	}
}

func (p *parent) acknowledged(e entry, working bool) {
	if _, open := p.tries[e.ID]; open && !working {
		p.settled++
	}
	delete(p.tries, e.ID)
	switch e.Verb {
	case "":
	case "sign", "wrap":
		p.signatures = append(p.signatures, e)
	default:
		p.mutations = append(p.mutations, e)
	}
}

// audit checks that the log, as an auditor reads it from the dead store, has
// the record of each acknowledgement where the receipt says, and that no op_id
// had its effect twice.
func (p *parent) audit(log []coretest.Entry) {
	t := p.t
	effects := make(map[[16]byte]int)
	intents := make(map[uint64]int) // by index + 1: how many results
	opened := uint64(0)             // the last time
	seq := make(map[string]uint64)
	for _, r := range log {
		switch r.Kind {
		case audit.KindOpen:
			opened = r.Index
		case audit.KindIntent:
			intents[r.Index+1] = 0
		case audit.KindOperation:
			if _, ok := intents[r.Ref]; ok {
				intents[r.Ref]++
				if r.Result == "ok" {
					effects[r.OpID]++
				}
			}
		}
		if r.Key != "" {
			if r.KeySeq != seq[r.Key]+1 {
				t.Errorf("record %d of %s has number %d after %d", r.Index, r.Key, r.KeySeq, seq[r.Key])
			}
			seq[r.Key] = r.KeySeq
		}
	}
	for ref, results := range intents {
		// What the last process left open, the next one will settle.
		if results != 1 && (results > 1 || ref <= opened) {
			t.Errorf("the intent at %d has %d results", ref-1, results)
		}
	}
	for _, e := range slices.Concat(p.mutations, p.signatures) {
		var resp struct {
			KID     string      `json:"kid"`
			Receipt api.Receipt `json:"receipt"`
		}
		if err := json.Unmarshal(e.Resp, &resp); err != nil {
			t.Fatal(err)
		}
		at := resp.Receipt.LogIndex
		if at >= uint64(len(log)) {
			t.Errorf("the log has %d records, and %d was acknowledged", len(log), at)
			continue
		}
		r := log[at]
		if r.Op != e.Verb || r.Result != "ok" || r.Key != base(resp.KID) || r.KeySeq != resp.Receipt.KeySeq {
			t.Errorf("record %d is %s %s of %s, want %s of %s", at, r.Op, r.Result, r.Key, e.Verb, resp.KID)
		}
		if mutates(e.Verb) && effects[uuid.MustParse(e.ID)] != 1 {
			t.Errorf("%s %s has %d effects on record", e.Verb, e.ID, effects[uuid.MustParse(e.ID)])
		}
	}
}
