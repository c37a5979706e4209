package crash

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/coretest"
)

// An entry is one line between parent and worker. The worker writes a "try"
// before it asks for a mutation, and an "ack" once it has the result; the
// parent sends acks back to the next worker to be checked, and tries that were
// never acknowledged to be tried again.
type entry struct {
	Kind string          `json:"kind"` // "open", "checked", "try", "ack", "fail"
	ID   string          `json:"id,omitempty"`
	Verb string          `json:"verb,omitempty"`
	Req  json.RawMessage `json:"req,omitempty"`
	Resp json.RawMessage `json:"resp,omitempty"`
	Text string          `json:"text,omitempty"`
	MS   float64         `json:"ms,omitempty"`
}

const (
	workers = 4
	maxLive = 12 // keys that are not destroyed
)

var algorithms = []string{"ed25519", "ed25519+ml-dsa-65", "ml-dsa-65", "aes-256-gcm", "x25519+ml-kem-768", "hkdf-sha256"}

func storeConfig(dir string) *config.Config {
	cfg := config.Default()
	cfg.Dir, cfg.ArenaSize, cfg.AuditSegmentSize = dir, 1<<20, 64<<10
	cfg.AuditCheckpointInterval = config.Duration(10 * time.Millisecond) // so that kills hit checkpoints too
	return cfg
}

// worker is the process that gets killed.
type worker struct {
	k *core.KMS
	s *core.Session

	out sync.Mutex // one line at a time

	mu   sync.Mutex // guards keys
	keys []string   // kids without version, not destroyed
}

func (w *worker) say(e entry) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	w.out.Lock()
	defer w.out.Unlock()
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		os.Exit(3) // the parent is gone
	}
}

func (w *worker) fail(format string, args ...any) {
	w.say(entry{Kind: "fail", Text: fmt.Sprintf(format, args...)})
	os.Exit(2)
}

// runWorker opens the store in dir, checks what it gets on stdin, and then
// works until it is killed.
func runWorker(dir string, seed uint64) {
	w := new(worker)
	start := time.Now()
	var err error
	w.k, err = core.Open(context.Background(), storeConfig(dir), core.Options{
		Passphrase: func() ([]byte, error) { return []byte(coretest.Passphrase), nil },
	})
	if err != nil {
		w.fail("open: %v", err)
	}
	w.say(entry{Kind: "open", MS: float64(time.Since(start).Microseconds()) / 1000})
	if r := w.k.Ready(); !r.Ready {
		w.fail("the store alarms: %+v", r)
	}
	if w.s, err = w.k.OpenSession(coretest.Token(panics{}, w.k, "acme", nil)); err != nil {
		w.fail("session: %v", err)
	}
	n := w.check(os.Stdin)
	w.list()
	w.say(entry{Kind: "checked", MS: float64(n)})
	for i := range workers {
		go w.work(rand.New(rand.NewPCG(seed, uint64(i))))
	}
	select {}
}

func (w *worker) call(verb string, req []byte) ([]byte, error) {
	return w.k.Call(context.Background(), w.s, verb, req)
}

// check goes through what the parent remembers.
func (w *worker) check(r io.Reader) (n int) {
	in := bufio.NewReader(r)
	for ; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return n
		}
		var e entry
		if err == nil {
			err = json.Unmarshal(line, &e)
		}
		if err != nil {
			w.fail("journal: %v", err)
		}
		switch {
		case e.Kind == "try":
			w.retry(e)
		case e.Verb == "sign":
			w.checkSignature(e)
		case e.Verb == "wrap":
			w.checkEnvelope(e)
		default:
			w.checkAnswer(e)
		}
	}
}

// retry repeats a mutation whose fate nobody knows. It happens once in all;
// the key may have been destroyed by another one meanwhile.
func (w *worker) retry(e entry) {
	resp, err := w.call(e.Verb, e.Req)
	switch {
	case err == nil:
		w.say(entry{Kind: "ack", ID: e.ID, Verb: e.Verb, Req: e.Req, Resp: resp})
	case api.HasReason(err, api.ReasonDestroyed) && (e.Verb == "rotate" || e.Verb == "derive"):
		w.say(entry{Kind: "ack", ID: e.ID})
	default:
		w.fail("retry of %s %s: %v", e.Verb, e.Req, err)
	}
}

// checkSignature: every acknowledged signature verifies.
func (w *worker) checkSignature(e entry) {
	var req api.SignRequest
	var resp api.SignResponse
	if err := errors.Join(json.Unmarshal(e.Req, &req), json.Unmarshal(e.Resp, &resp)); err != nil {
		w.fail("journal: %v", err)
	}
	v, err := coretest.Do[api.VerifyResponse](w.k, w.s, "verify", &api.VerifyRequest{PayloadB3: req.PayloadB3, Sigs: resp.Sigs})
	if err != nil || !v.OK {
		w.fail("an acknowledged signature by %s does not verify: %+v, %v", resp.KID, v, err)
	}
}

// checkEnvelope: every acknowledged envelope opens to its data key, unless its
// key was destroyed.
func (w *worker) checkEnvelope(e entry) {
	var resp api.WrapResponse
	if err := json.Unmarshal(e.Resp, &resp); err != nil {
		w.fail("journal: %v", err)
	}
	u, err := coretest.Do[api.UnwrapResponse](w.k, w.s, "unwrap", &api.UnwrapRequest{KID: base(resp.KID), WrappedB64: resp.WrappedB64})
	if api.HasReason(err, api.ReasonDestroyed) {
		return
	}
	if err != nil || u.PlaintextKeyB64 != resp.PlaintextKeyB64 || u.KID != resp.KID {
		w.fail("an acknowledged envelope of %s does not open: %v", resp.KID, err)
	}
}

// checkAnswer: every acknowledged op_id gives its answer again, and the key
// has not gone back behind it.
func (w *worker) checkAnswer(e entry) {
	resp, err := w.call(e.Verb, e.Req)
	if err != nil {
		w.fail("an acknowledged %s is refused: %v (%s)", e.Verb, err, e.Req)
	}
	if a, b := answer(resp), answer(e.Resp); a != b {
		w.fail("an acknowledged %s answers\n%s, was\n%s", e.Verb, a, b)
	}
	var was struct {
		Key api.Key `json:"key"`
	}
	if err := json.Unmarshal(e.Resp, &was); err != nil {
		w.fail("journal: %v", err)
	}
	now, err := coretest.Do[api.GetResponse](w.k, w.s, "get", &api.GetRequest{KID: base(was.Key.KID)})
	if err != nil {
		w.fail("an acknowledged key is gone: %v", err)
	}
	if now.Key.Head < was.Key.Head || was.Key.State == api.StateDestroyed && now.Key.State != api.StateDestroyed {
		w.fail("key %s went back: %s head %d, was %s head %d", was.Key.KID, now.Key.State, now.Key.Head, was.Key.State, was.Key.Head)
	}
	for _, v := range was.Key.Versions {
		if got := now.Key.Versions[v.Version-1]; got.KID != v.KID || !slices.Equal(got.Public, v.Public) || !got.CreatedAt.Equal(v.CreatedAt) {
			w.fail("version %s is another one", v.KID)
		}
	}
}

// answer is a response without its receipt, which is of each call's own
// record.
func answer(resp []byte) string {
	var m map[string]any
	if err := json.Unmarshal(resp, &m); err != nil {
		panic(err)
	}
	delete(m, "receipt")
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func mutates(verb string) bool {
	v, ok := core.VerbNamed(verb)
	return ok && v.Mutates
}

func base(kid string) string {
	name, _, _ := strings.Cut(kid, "#")
	return name
}

// list finds the keys that can be worked with.
func (w *worker) list() {
	after := ""
	for {
		r, err := coretest.Do[api.ListResponse](w.k, w.s, "list", &api.ListRequest{Tenant: "acme", After: after, Limit: 500})
		if err != nil {
			w.fail("list: %v", err)
		}
		for _, key := range r.Keys {
			if key.State == api.StateActive && key.Parent == "" {
				w.keys = append(w.keys, base(key.KID))
			}
		}
		if after = r.Next; after == "" {
			return
		}
	}
}

// work does random operations for ever.
func (w *worker) work(rng *rand.Rand) {
	for {
		w.mu.Lock()
		live := len(w.keys)
		kid := ""
		if live > 0 {
			kid = w.keys[rng.IntN(live)]
		}
		w.mu.Unlock()
		verb, id := "sign", uuid.NewString()
		var req any
		switch p := rng.IntN(20); {
		case live == 0 || live < maxLive && p < 3:
			verb = "create"
			req = &api.CreateRequest{OpID: id, Tenant: "acme", Purpose: "test", Alg: algorithms[rng.IntN(len(algorithms))]}
		case p < 7:
			verb, req = "rotate", &api.RotateRequest{OpID: id, KID: kid}
		case p < 9 && live > maxLive/2:
			verb, req = "destroy", &api.DestroyRequest{OpID: id, KID: kid}
		case strings.Contains(kid, "/hkdf-sha256/"):
			context := fmt.Sprintf("ctx%d", rng.IntN(3)) // some again
			verb, req = "derive", &api.DeriveRequest{OpID: id, KID: kid, Context: context, Alg: "ed25519"}
		case strings.Contains(kid, "/aes-256-gcm/"), strings.Contains(kid, "/x25519+ml-kem-768/"):
			verb, req = "wrap", &api.WrapRequest{KID: kid, Size: 32}
		default:
			req = &api.SignRequest{KID: kid, PayloadB3: coretest.Digest(byte(rng.IntN(256)))}
		}
		w.do(verb, id, req)
	}
}

func (w *worker) do(verb, id string, req any) {
	body, err := json.Marshal(req)
	if err != nil {
		w.fail("%v", err)
	}
	if mutates(verb) {
		w.say(entry{Kind: "try", ID: id, Verb: verb, Req: body})
	}
	resp, err := w.call(verb, body)
	if api.HasReason(err, api.ReasonDestroyed) {
		w.say(entry{Kind: "ack", ID: id}) // refused: nothing to remember
		return
	}
	if err != nil {
		w.fail("%s: %v", verb, err)
	}
	w.say(entry{Kind: "ack", ID: id, Verb: verb, Req: body, Resp: resp})
	var got struct {
		KID string `json:"kid"`
	}
	if err := json.Unmarshal(resp, &got); err != nil {
		w.fail("%v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch verb {
	case "create":
		w.keys = append(w.keys, base(got.KID))
	case "destroy":
		for i, kid := range w.keys {
			if kid == got.KID {
				w.keys = append(w.keys[:i], w.keys[i+1:]...)
				break
			}
		}
	}
}

// panics lets test helpers be used in the worker.
type panics struct{ testing.TB }

func (panics) Helper()           {}
func (panics) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
