package core

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/config"
)

// These tests stand inside the package, because they stop a mutation between
// its steps. A copy of the folder at such a moment is what a process that is
// killed then leaves.

const crashPassphrase = "p"

func crashConfig(t *testing.T) *config.Config {
	cfg := config.Default()
	cfg.Dir = filepath.Join(t.TempDir(), "store")
	cfg.ArenaSize, cfg.AuditSegmentSize = 1<<20, 64<<10
	// Nothing but the test's own operations writes while folders are copied.
	cfg.AuditCheckpointInterval = config.Duration(time.Minute)
	return cfg
}

func crashOpen(t *testing.T, cfg *config.Config) (*KMS, *Session) {
	t.Helper()
	k, err := Open(context.Background(), cfg, Options{Passphrase: func() ([]byte, error) { return []byte(crashPassphrase), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, crashSession(t, k)
}

// crashSession may do everything as tenant acme.
func crashSession(t *testing.T, k *KMS) *Session {
	t.Helper()
	scope, err := capability.ScopeCaveat(capability.ScopeList()...)
	if err != nil {
		t.Fatal(err)
	}
	caveats := []capability.Caveat{scope}
	for _, text := range []string{"tenant=acme", "exp=" + strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)} {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			t.Fatal(err)
		}
		caveats = append(caveats, c)
	}
	id := k.tokens.Newest()
	token, err := mint.New(id, func(use func([]byte)) error { return k.tokens.Root(id, use) }, caveats...)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.OpenSession(token)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func crashDo(k *KMS, s *Session, verb string, req api.Request) (any, error) {
	v, _ := VerbNamed(verb)
	return k.Do(context.Background(), s, v, req)
}

func copyStore(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stops is a backend that calls hooks around each commit.
type stops struct {
	backends.Backend
	before, after func() error
}

func (b *stops) Commit(ctx context.Context, revision uint64, puts ...backends.Put) (uint64, error) {
	if b.before != nil {
		if err := b.before(); err != nil {
			return 0, err
		}
	}
	next, err := b.Backend.Commit(ctx, revision, puts...)
	if err == nil && b.after != nil {
		err = b.after()
	}
	return next, err
}

// read gives all records of a log that is open.
func (k *KMS) read(t *testing.T) (all []*audit.Record) {
	t.Helper()
	if err := k.audit.Read(context.Background(), 0, func(_ uint64, r *audit.Record) error {
		all = append(all, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// results counts the results on record for an op_id.
func results(t *testing.T, k *KMS, opID string) map[string]int {
	t.Helper()
	found := make(map[string]int)
	for _, r := range k.read(t) {
		if uuid.UUID(r.OpID).String() == opID && r.Kind == audit.KindOperation && r.Ref != 0 {
			found[r.Result]++
		}
	}
	return found
}

// A mutation that is killed after its intent, after its effect or after its
// result has happened wholly or not at all: reopening settles its record, and
// its op_id then gives the one answer..
func TestKilledBetweenSteps(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	ctx := context.Background()
	if _, err := Init(ctx, cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	id, err := api.ParseKID(kid)
	if err != nil {
		t.Fatal(err)
	}
	folders := t.TempDir()
	hook := &stops{Backend: k.vault.Backend}
	k.vault.Backend = hook
	for _, c := range []struct {
		verb string
		req  api.Request
		opID string
	}{
		{"create", &api.CreateRequest{OpID: "11111111-0000-4000-8000-000000000001", Tenant: "acme", Purpose: "test", Alg: "ed25519"}, "11111111-0000-4000-8000-000000000001"},
		{"rotate", &api.RotateRequest{OpID: "11111111-0000-4000-8000-000000000002", KID: kid}, "11111111-0000-4000-8000-000000000002"},
		{"destroy", &api.DestroyRequest{OpID: "11111111-0000-4000-8000-000000000003", KID: id.Base().String()}, "11111111-0000-4000-8000-000000000003"},
	} {
		dir := func(step string) string { return filepath.Join(folders, c.verb, step) }
		hook.before = func() error { copyStore(t, cfg.Dir, dir("intent")); return nil }
		hook.after = func() error { copyStore(t, cfg.Dir, dir("effect")); return nil }
		answer, err := crashDo(k, s, c.verb, c.req)
		if err != nil {
			t.Fatal(err)
		}
		copyStore(t, cfg.Dir, dir("result"))
		hook.before, hook.after = nil, nil
		answer = withoutReceipt(answer)

		for _, step := range []struct {
			name, result string
			happened     bool
		}{{"intent", resultAborted, false}, {"effect", resultOK, true}, {"result", resultOK, true}} {
			t.Run(c.verb+" killed after "+step.name, func(t *testing.T) {
				cfg := *cfg
				cfg.Dir = dir(step.name)
				for round := range 3 {
					k, s := crashOpen(t, &cfg)
					if r := k.Ready(); !r.Ready {
						t.Fatalf("round %d: %+v", round, r)
					}
					if got := results(t, k, c.opID); got[step.result] != 1 || len(got) != 1 && round == 0 {
						t.Fatalf("round %d: results on record %v, want one %s", round, got, step.result)
					}
					again, err := crashDo(k, s, c.verb, c.req)
					if err != nil {
						t.Fatal(err)
					}
					if replayed := reflect.ValueOf(again).Elem().FieldByName("Replayed").Bool(); replayed != (step.happened || round > 0) {
						t.Fatalf("round %d: replayed %t", round, replayed)
					}
					again = withoutReceipt(again)
					if step.happened && !reflect.DeepEqual(again, answer) {
						t.Fatalf("round %d: the answer became\n%+v, was\n%+v", round, again, answer)
					}
					if want := map[string]int{resultOK: 1}; !step.happened {
						want[resultAborted] = 1
						if got := results(t, k, c.opID); !reflect.DeepEqual(got, want) {
							t.Fatalf("round %d: results on record %v, want %v", round, got, want)
						}
					}
					if err := k.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

func withoutReceipt(answer any) any {
	v := reflect.New(reflect.TypeOf(answer).Elem()).Elem()
	v.Set(reflect.ValueOf(answer).Elem())
	v.FieldByName("Receipt").SetZero()
	v.FieldByName("Replayed").SetZero()
	return v.Interface()
}

// A store that fails in a commit, before or after the disk has it: the caller
// gets no result, the engine stops using keys and goes on verifying, and
// reopening finds out which it was..
func TestCommitFails(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after=%t", after), func(t *testing.T) {
			t.Parallel()
			cfg := crashConfig(t)
			if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
				t.Fatal(err)
			}
			k, s := crashOpen(t, cfg)
			made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
			if err != nil {
				t.Fatal(err)
			}
			kid := made.(*api.CreateResponse).KID
			signed, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1})
			if err != nil {
				t.Fatal(err)
			}
			broken := func() error { return errors.New("input/output error") }
			hook := &stops{Backend: k.vault.Backend, before: broken}
			if after {
				hook.before, hook.after = nil, broken
			}
			k.vault.Backend = hook
			rotate := &api.RotateRequest{OpID: uuid.NewString(), KID: kid}
			if r, err := crashDo(k, s, "rotate", rotate); r != nil || api.AsError(err).Code != api.CodeStoreUnavailable {
				t.Fatalf("rotate: %v, %v", r, err)
			}
			for _, verb := range []string{"rotate", "sign"} {
				req := api.Request(rotate)
				if verb == "sign" {
					req = &api.SignRequest{KID: kid, PayloadB3: digest1}
				}
				if r, err := crashDo(k, s, verb, req); r != nil || api.AsError(err).Code != api.CodeStoreUnavailable {
					t.Errorf("%s on a broken store: %v, %v", verb, r, err)
				}
			}
			if r := k.Ready(); r.Ready || !r.Verify || r.Reason != string(api.ReasonStore) {
				t.Errorf("ready: %+v", r)
			}
			v, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: signed.(*api.SignResponse).Sigs})
			if err != nil || !v.(*api.VerifyResponse).OK {
				t.Errorf("verify on a broken store: %v, %v", v, err)
			}
			if err := k.Close(); err == nil {
				t.Error("Close says that the broken store has the last head record")
			}
			k, s = crashOpen(t, cfg)
			if r := k.Ready(); !r.Ready {
				t.Fatalf("after reopening: %+v", r)
			}
			got, err := crashDo(k, s, "rotate", rotate)
			if err != nil {
				t.Fatal(err)
			}
			r := got.(*api.RotateResponse)
			if r.Key.Head != 2 || r.Replayed != after {
				t.Errorf("the retry: head %d, replayed %t", r.Key.Head, r.Replayed)
			}
		})
	}
}

const digest1 = "0101010101010101010101010101010101010101010101010101010101010101"

// A log that stops between the effect and its record: no signature and no
// answer leaves. R-016.
func TestLogStopsBeforeTheResult(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	inner := k.vault.Backend
	rotate := &api.RotateRequest{OpID: uuid.NewString(), KID: kid}
	k.vault.Backend = &stops{Backend: inner, after: func() error { return k.audit.Close() }}
	if r, err := crashDo(k, s, "rotate", rotate); r != nil || api.AsError(err).Code != api.CodeStoreUnavailable {
		t.Fatalf("rotate without a record: %v, %v", r, err)
	}
	k.Close()

	k, s = crashOpen(t, cfg)
	if got, err := crashDo(k, s, "rotate", rotate); err != nil || got.(*api.RotateResponse).Key.Head != 2 || !got.(*api.RotateResponse).Replayed {
		t.Fatalf("the retry: %+v, %v", got, err)
	}
	k.vault.Backend = &stopsSign{Backend: k.vault.Backend, after: func() error { return k.audit.Close() }}
	base := kid[:len(kid)-len("#v1")]
	if r, err := crashDo(k, s, "sign", &api.SignRequest{KID: base, PayloadB3: digest1}); r != nil || api.AsError(err).Code != api.CodeStoreUnavailable {
		t.Fatalf("sign without a record: %v, %v", r, err)
	}
}

// stopsSign calls a hook after each signature of a tenant's key; the log's own
// checkpoints are signed in the same place.
type stopsSign struct {
	backends.Backend
	after func() error
}

func (b *stopsSign) Sign(ctx context.Context, ref backends.Ref, scheme alg.Scheme, sealed, msg []byte) ([]byte, error) {
	sig, err := b.Backend.Sign(ctx, ref, scheme, sealed, msg)
	if ref.KID.Tenant == "acme" {
		err = errors.Join(err, b.after())
	}
	return sig, err
}

// memoryLog is a log of the given records, and what would be the store's KMS with it.
func memoryLog(t *testing.T, records ...*audit.Record) *KMS {
	t.Helper()
	skey, vkey, err := note.GenerateKey(nil, "kms.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := notekey.ParseSet(vkey)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.NewMemory(audit.Options{Origin: "kms.example/audit", Signers: []note.Signer{signer}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	for _, r := range records {
		if r.Ref != 0 { // 1 answers the intent before
			r.Ref = log.Size()
		}
		if _, err := log.Append(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
	return &KMS{audit: log}
}

// What lies open is settled in the order of its intents.
func TestCompareInOrder(t *testing.T) {
	t.Parallel()
	found := &contents{keys: make(map[api.KID]*keyRecord), ops: make(map[string]uint64)}
	var intents []*audit.Record
	for range 50 {
		intents = append(intents, &audit.Record{Kind: audit.KindIntent, Op: "create", Tenant: "acme", OpID: uuid.New(), Key: "k"})
	}
	pending, err := memoryLog(t, intents...).compare(found)
	if err != nil || len(pending) != 50 {
		t.Fatalf("%d pending, %v", len(pending), err)
	}
	for i, p := range pending {
		if p.record.OpID != intents[i].OpID || p.result != resultAborted {
			t.Fatalf("pending %d is %+v", i, p)
		}
	}
}

// A store whose log knows nothing of it, record by record, or knows more..
func TestCompareRefuses(t *testing.T) {
	t.Parallel()
	kid, err := api.ParseKID("acme/test/ed25519/7f000000-0000-4000-8000-000000000001")
	if err != nil {
		t.Fatal(err)
	}
	record := func(kind audit.Kind, result string, ref uint64) *audit.Record {
		return &audit.Record{Kind: kind, Op: "create", Tenant: "acme", OpID: uuid.UUID{1}, Key: kid.String(), Result: result, Ref: ref}
	}
	op := opName("acme", "create", uuid.UUID{1})
	const at = 3 // where the first intent stands in a memory log
	for name, tt := range map[string]struct {
		log  []*audit.Record
		harm func(c *contents)
		want string // of the one that is pending, "refused", or "" for none
	}{
		"whole":                     {want: ""},
		"no key":                    {harm: func(c *contents) { clear(c.keys) }, want: "refused"},
		"neither key nor op":        {harm: func(c *contents) { clear(c.ops); clear(c.keys) }, want: "refused"},
		"no log":                    {log: []*audit.Record{}, want: "refused"},
		"op of a later record":      {harm: func(c *contents) { c.ops["op/acme/create/x"] = 1000 }, want: "refused"},
		"key of another intent":     {harm: func(c *contents) { c.keys[kid].Intent = at - 1 }, want: "refused"},
		"key of a later intent":     {harm: func(c *contents) { c.keys[kid].Intent = at + 1 }, want: "refused"},
		"effect of what was undone": {log: []*audit.Record{record(audit.KindIntent, "", 0), record(audit.KindOperation, resultAborted, 1)}, want: "refused"},
		"cut off behind the commit": {log: []*audit.Record{record(audit.KindIntent, "", 0)}, want: resultOK},
		"cut off before the commit": {log: []*audit.Record{record(audit.KindIntent, "", 0)}, harm: func(c *contents) { clear(c.ops); clear(c.keys) }, want: resultAborted},
		"half a commit":             {log: []*audit.Record{record(audit.KindIntent, "", 0)}, harm: func(c *contents) { clear(c.keys) }, want: "refused"},
	} {
		if tt.log == nil {
			tt.log = []*audit.Record{record(audit.KindIntent, "", 0), record(audit.KindOperation, resultOK, 1)}
		}
		c := &contents{keys: map[api.KID]*keyRecord{kid: {KID: kid.String(), Intent: at}}, ops: map[string]uint64{op: at}}
		if tt.harm != nil {
			tt.harm(c)
		}
		k := memoryLog(t, tt.log...)
		pending, err := k.compare(c)
		got := ""
		switch {
		case err != nil && !errors.Is(err, backends.ErrTampered):
			t.Errorf("%s: %v", name, err)
		case err != nil:
			got = "refused"
		case len(pending) == 1:
			got = pending[0].result
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q (%v)", name, got, tt.want, err)
		}
	}
}

// Rotating and destroying erase the private part: from the record, and from
// locked memory, also beside signatures under way. D-30, R-011.
func TestPrivatePartsAreErased(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	idle := k.vault.Arena().Stats().Slots
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid"})
	if err != nil {
		t.Fatal(err)
	}
	kid, err := api.ParseKID(made.(*api.CreateResponse).KID)
	if err != nil {
		t.Fatal(err)
	}
	kid = kid.Base()
	sign := func() {
		if _, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid.String(), PayloadB3: digest1}); err != nil && api.AsError(err).Code != api.CodeKeyDestroyed {
			t.Error(err)
		}
	}
	sealed := func() (versions []uint32) {
		var r keyRecord
		if found, err := k.vault.get(context.Background(), prefixKey+kid.String(), &r); err != nil || !found {
			t.Fatalf("record: %t, %v", found, err)
		}
		for _, v := range r.Versions {
			for _, tr := range v.Tracks {
				if len(tr.Public) == 0 {
					t.Errorf("version %d has no public part", v.N)
				}
				if tr.Sealed != nil {
					versions = append(versions, v.N)
				}
			}
		}
		return versions
	}
	// The second track stays under its name; the cached keys are two a version.
	for n := uint32(1); n <= 8; n++ {
		sign()
		if got := sealed(); !reflect.DeepEqual(got, []uint32{n, n}) {
			t.Fatalf("at version %d the record holds private parts of %v", n, got)
		}
		if got := k.vault.Arena().Stats().Slots; got != idle+2 {
			t.Fatalf("at version %d %d keys are in memory, want 2", n, got-idle)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(sign)
		}
		if _, err := crashDo(k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid.String()}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	sign()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(sign)
	}
	if _, err := crashDo(k, s, "destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: kid.String()}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if got := sealed(); len(got) != 0 {
		t.Errorf("a destroyed key keeps private parts of %v", got)
	}
	if got := k.vault.Arena().Stats().Slots; got > idle {
		t.Errorf("%d keys are in memory, want none", got-idle)
	}
}

// A rotation in the middle of a signature: the signature counts as made before
// it, and the old private part does not stay in memory after it. R-011.
func TestRotateInsideSign(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	idle := k.vault.Arena().Stats().Slots
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	var once sync.Once
	k.vault.Backend = &beforeSign{Backend: k.vault.Backend, hook: func() {
		once.Do(func() {
			if _, err := crashDo(k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid}); err != nil {
				t.Error(err)
			}
		})
	}}
	r, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.(*api.SignResponse); got.KID != kid {
		t.Errorf("signed as %s, want %s", got.KID, kid)
	}
	if got := k.vault.Arena().Stats().Slots; got != idle {
		t.Errorf("%d private parts of the old version are in memory", got-idle)
	}
	v, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: r.(*api.SignResponse).Sigs})
	if err != nil || !v.(*api.VerifyResponse).OK {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// beforeSign calls a hook before each signature of a tenant's key.
type beforeSign struct {
	backends.Backend
	hook func()
}

func (b *beforeSign) Sign(ctx context.Context, ref backends.Ref, scheme alg.Scheme, sealed, msg []byte) ([]byte, error) {
	if ref.KID.Tenant == "acme" {
		b.hook()
	}
	return b.Backend.Sign(ctx, ref, scheme, sealed, msg)
}

// A batch does not go on with a key that was destroyed meanwhile: what follows
// the destruction is refused item by item.
func TestBatchStopsWhenDestroyed(t *testing.T) {
	t.Parallel()
	k, s := amnesia(t)
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: s.Tenant(), Purpose: "test", Alg: "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	n := 0
	k.vault.Backend = &beforeSign{Backend: k.vault.Backend, hook: func() {
		if n++; n == 3 {
			base, _, _ := strings.Cut(kid, "#")
			if _, err := crashDo(k, s, "destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: base}); err != nil {
				t.Error(err)
			}
		}
	}}
	req := &api.SignBatchRequest{KID: kid}
	for range 6 {
		req.Items = append(req.Items, api.SignItem{PayloadB3: digest1})
	}
	r, err := crashDo(k, s, "sign_batch", req)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range r.(*api.SignBatchResponse).Results {
		if refused := got.Error != nil && got.Error.Code == api.CodeKeyDestroyed; refused != (i >= 3) {
			t.Errorf("item %d: %+v", i, got)
		}
	}
}
