package core

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// SealedTenantKey is what the store keeps of a tenant's audit key.
func SealedTenantKey(t testing.TB, k *KMS, tenant string) string {
	t.Helper()
	r, err := k.personal.stored(tenant)
	if err != nil || len(r.Sealed) == 0 {
		t.Fatal(err)
	}
	// As it stands in the file: base64 in JSON.
	b, err := k.vault.Get(context.Background(), prefixTenantAudit+tenant)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), `"sealed":"`)
	text, _, _ = strings.Cut(text, `"`)
	return text
}

// OpenTenantKeys is how many audit keys are in the arena.
func OpenTenantKeys(k *KMS) int {
	k.personal.mu.RLock()
	defer k.personal.mu.RUnlock()
	return len(k.personal.open)
}

// verifyMany signs with a new key, verifies that n times, and once what is
// wrong.
func verifyMany(t *testing.T, k *KMS, s *Session, n int) (kid string) {
	t.Helper()
	c, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	kid = c.(*api.CreateResponse).KID
	digest := strings.Repeat("01", 32)
	signed, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest})
	if err != nil {
		t.Fatal(err)
	}
	sigs := signed.(*api.SignResponse).Sigs
	ask := func(digest string, want bool) {
		t.Helper()
		v, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest, Sigs: sigs})
		if err != nil || v.(*api.VerifyResponse).OK != want {
			t.Fatal(v, err)
		}
	}
	for range n {
		ask(digest, true)
	}
	ask(strings.Repeat("02", 32), false)
	// A part of a batch that is an error is no verdict.
	b, err := crashDo(k, s, "verify_batch", &api.VerifyBatchRequest{Items: []api.VerifyRequest{{PayloadB3: "zz", Sigs: sigs}}})
	if err != nil || b.(*api.VerifyBatchResponse).Results[0].Error == nil {
		t.Fatal(b, err)
	}
	return kid
}

// offered waits until what was offered is in the log.
func offered(t *testing.T, k *KMS) []*audit.Record {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	next, _ := crashOpen(t, k.cfg)
	return next.read(t)
}

// Each setting records the verdicts that it should: all, one in 64, or their number per key and result; refusals and errors always,
// each. The sequences of keys hold. D-8, R-013, R-015.
func TestVerdictsOnRecord(t *testing.T) {
	t.Parallel()
	const n = 199 // and one that is invalid
	for _, mode := range []string{config.AuditVerifyFull, config.AuditVerifySampled, config.AuditVerifyAggregate} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cfg := crashConfig(t)
			cfg.AuditVerify = mode
			if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
				t.Fatal(err)
			}
			k, s := crashOpen(t, cfg)
			kid := verifyMany(t, k, s, n)
			base := strings.TrimSuffix(kid, "#v1")
			// A refusal and an error, of verify too.
			if _, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: "zz", Sigs: []api.Signature{{KID: kid}}}); err == nil {
				t.Error("malformed and verified")
			}
			stranger := &api.VerifyRequest{PayloadB3: strings.Repeat("01", 32), Sigs: []api.Signature{{KID: strings.Replace(kid, "acme", "other", 1), Alg: "ed25519", SignatureB64: "AAAA"}}}
			if _, err := crashDo(k, s, "verify", stranger); err == nil {
				t.Error("a stranger verified")
			}
			type line struct {
				kind   audit.Kind
				key    string
				result string
				count  uint64
				actor  bool
			}
			got := make(map[line]int)
			sum := uint64(0)
			for _, r := range offered(t, k) {
				if r.Op == "verify_batch" {
					got[line{r.Kind, r.Key, r.Result, r.Count, r.Actor != ""}]++
				}
				if r.Op == "verify" {
					got[line{r.Kind, r.Key, r.Result, r.Count, r.Actor != ""}]++
					if r.Kind == audit.KindOperation && (r.Result == resultOK || r.Result == resultInvalid) {
						sum += max(1, r.Count)
					}
				}
			}
			if failed := (line{audit.KindOperation, "", string(api.CodeBadRequest), 0, true}); got[failed] != 1 {
				t.Errorf("errors: %v", got)
			}
			denied := line{audit.KindDenied, "", string(api.CodeNoCapability), 0, true}
			if got[denied] != 1 {
				t.Errorf("refusals: %v", got)
			}
			switch mode {
			case config.AuditVerifyFull:
				if got[line{audit.KindOperation, base, resultOK, 0, true}] != n || got[line{audit.KindOperation, base, resultInvalid, 0, true}] != 1 {
					t.Errorf("%v", got)
				}
			case config.AuditVerifySampled:
				// 200 verdicts are three whole turns and a part of a fourth.
				if sum != 3*sampleOf && sum != 4*sampleOf {
					t.Errorf("%d verdicts: %v", sum, got)
				}
			case config.AuditVerifyAggregate:
				if got[line{audit.KindOperation, base, resultOK, n, false}] != 1 || got[line{audit.KindOperation, base, resultInvalid, 1, false}] != 1 || sum != n+1 {
					t.Errorf("%v", got)
				}
			}
		})
	}
}

// One of each 64 verdicts in turn is sampled, and not always the same one.
func TestSampled(t *testing.T) {
	t.Parallel()
	v := newVerdicts(config.AuditVerifySampled)
	places := make(map[int]bool)
	for turn := range 100 {
		hits := 0
		for i := range sampleOf {
			if v.sampled() {
				hits++
				places[i] = true
			}
		}
		if hits != 1 {
			t.Fatalf("turn %d: %d samples", turn, hits)
		}
	}
	if len(places) < 20 {
		t.Errorf("only %d different places in 100 turns", len(places))
	}
}

// Who verifies with ever other keys and tenants fills no memory, and no verdict is left out of the sums.
func TestVerdictsBounded(t *testing.T) {
	t.Parallel()
	v := newVerdicts(config.AuditVerifyAggregate)
	const n = 50_000
	for i := range n {
		kid := api.KID{Tenant: fmt.Sprint("t", i%5000), Purpose: "p", Alg: "ed25519", ID: uuid.NewString()}
		v.add(verdict{"verify", kid.Tenant, kid, resultOK})
	}
	sums := v.take()
	total, exact, perTenant, other := uint64(0), 0, 0, 0
	for at, count := range sums {
		total += count
		switch {
		case !at.kid.IsZero():
			exact++
		case at.tenant != "":
			perTenant++
		default:
			other++
		}
	}
	if total != n || exact != maxVerdicts || perTenant != maxVerdicts || other != 1 {
		t.Errorf("%d verdicts: %d exact, %d per tenant, %d other", total, exact, perTenant, other)
	}
	if len(v.take()) != 0 {
		t.Error("the sums are written twice")
	}
}

// A crash while a tenant's key is erased leaves an erasure that happened, or one that did not, and the log says which. R-016.
func TestEraseCrash(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		after  bool
		result string
		erased bool
	}{
		{"before the commit", false, resultAborted, false},
		{"after the commit", true, resultOK, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := crashConfig(t)
			cfg.AuditPersonal = config.AuditPersonalSealed
			if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
				t.Fatal(err)
			}
			k, s := crashOpen(t, cfg)
			verifyMany(t, k, s, 1)
			dead := *cfg
			dead.Dir = t.TempDir() + "/dead"
			stop := func() error {
				copyStore(t, cfg.Dir, dead.Dir)
				return errors.New("stopped")
			}
			b := &stops{Backend: k.vault.Backend}
			if tt.after {
				b.after = stop
			} else {
				b.before = stop
			}
			k.vault.Backend = b
			if err := k.EraseTenant(context.Background(), "acme"); api.AsError(err).Code != api.CodeStoreUnavailable {
				t.Fatal(err)
			}
			b.before, b.after = nil, nil
			next, _ := openWith(t, &dead)
			if r := next.Ready(); !r.Ready {
				t.Fatalf("not ready: %+v", r)
			}
			results := 0
			for _, r := range next.read(t) {
				if r.Op == "erase" && r.Kind == audit.KindOperation {
					results++
					if r.Result != tt.result {
						t.Errorf("result %q", r.Result)
					}
				}
				if len(r.Sealed) > 0 {
					if err := next.OpenPersonal(r); errors.Is(err, ErrErased) != tt.erased || err != nil && !tt.erased {
						t.Errorf("%s: %v", r.Op, err)
					}
				}
			}
			if results != 1 {
				t.Errorf("%d results", results)
			}
		})
	}
}

// openWith opens a store without a session, which would make a key.
func openWith(t *testing.T, cfg *config.Config) (*KMS, error) {
	t.Helper()
	k, err := Open(context.Background(), cfg, Options{Passphrase: func() ([]byte, error) { return []byte(crashPassphrase), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, err
}

// The answer that opening gives to a sealed intent names who asked, sealed again for its own record.
func TestSettleSealed(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	cfg.AuditPersonal = config.AuditPersonalSealed
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	dead := *cfg
	dead.Dir = t.TempDir() + "/dead"
	b := &stops{Backend: k.vault.Backend, before: func() error { copyStore(t, cfg.Dir, dead.Dir); return errors.New("stopped") }}
	k.vault.Backend = b
	if _, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"}); err == nil {
		t.Fatal("created")
	}
	b.before = nil
	next, _ := openWith(t, &dead)
	actors := make(map[audit.Kind]string)
	for _, r := range next.read(t) {
		if r.Op != "create" {
			continue
		}
		if r.Actor != "" || len(r.Sealed) == 0 {
			t.Errorf("%s in clear", r.Kind)
		}
		if err := next.OpenPersonal(r); err != nil {
			t.Errorf("%s: %v", r.Kind, err)
		}
		actors[r.Kind] = r.Actor
		if r.Kind == audit.KindOperation && !strings.HasPrefix(string(r.Detail), "settled") {
			t.Errorf("detail %q", r.Detail)
		}
	}
	if a := actors[audit.KindIntent]; a == "" || actors[audit.KindOperation] != a {
		t.Errorf("actors %v", actors)
	}
}

// A record that cannot be sealed goes without what it would say of people, not in clear; verify still answers. D-8.
func TestWithheld(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	cfg.AuditPersonal = config.AuditPersonalSealed
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	verifyMany(t, k, s, 1)
	if err := k.EraseTenant(context.Background(), "acme"); err != nil {
		t.Fatal(err)
	}
	k.lane <- struct{}{} // no change can be made now, and verify does not wait for that
	verdict, err := crashDo(k, s, "list", &api.ListRequest{Tenant: "acme"})
	<-k.lane
	if err != nil {
		t.Fatal(verdict, err)
	}
	found := false
	for _, r := range offered(t, k) {
		if r.Op == "list" {
			found = true
			if r.Actor != "" || len(r.Sealed) > 0 || string(r.Detail) != withheld {
				t.Errorf("%+v", r)
			}
		}
	}
	if !found {
		t.Error("not on record")
	}
}

// The engine prunes its log by age or index; afterwards the store opens, signs, and the plan says what is left. R-274.
func TestPruneAudit(t *testing.T) {
	t.Parallel()
	cfg := crashConfig(t)
	cfg.AuditSegmentSize = 1 << 20
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	verifyMany(t, k, s, 1)
	ctx := context.Background()
	for k.audit.Size() < audit.VolumeRecords+500 {
		recs := make([]*audit.Record, 8000)
		for i := range recs {
			recs[i] = &audit.Record{Kind: audit.KindNoise, Count: 1}
		}
		if _, err := k.audit.Append(ctx, recs...); err != nil {
			t.Fatal(err)
		}
	}
	if i, err := k.AuditIndexAt(ctx, k.Now().Add(-time.Hour)); err != nil || i != 0 {
		t.Errorf("an hour ago: %d, %v", i, err)
	}
	size := k.audit.Size()
	before, err := k.AuditIndexAt(ctx, k.Now().Add(time.Hour))
	if err != nil || before < size {
		t.Fatalf("in an hour: %d, %v", before, err)
	}
	if _, err := k.PlanPrune(1 << 40); err == nil {
		t.Error("planned beyond the end")
	}
	plan, err := k.PlanPrune(before)
	if err != nil || plan.From != 0 || plan.Records() != audit.VolumeRecords {
		t.Fatalf("%+v, %v", plan, err)
	}
	if _, err := k.PruneAudit(ctx, before, ""); err == nil {
		t.Error("pruned without a policy")
	}
	if plan, err = k.PruneAudit(ctx, before, "a test"); err != nil || plan.To != audit.VolumeRecords {
		t.Fatalf("%+v, %v", plan, err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k, s = crashOpen(t, cfg)
	if r := k.Ready(); !r.Ready {
		t.Fatalf("not ready: %+v", r)
	}
	verifyMany(t, k, s, 1)
	if plan, err = k.PlanPrune(before); err != nil || plan.From != audit.VolumeRecords || plan.Records() != 0 {
		t.Errorf("%+v, %v", plan, err)
	}
}

// The published sealed record opens with its published key. R-013.
func TestPersonalVector(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "docs", "vectors", "audit-record.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vs struct {
		Records []struct {
			Name string `json:"name"`
			Hex  string `json:"hex"`
		} `json:"records"`
		Personal struct {
			Record     string `json:"record"`
			Key        string `json:"key"`
			Generation uint32 `json:"generation"`
			Owner      string `json:"owner"`
			Actor      string `json:"actor"`
			Detail     string `json:"detail"`
		} `json:"personal"`
	}
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	v := vs.Personal
	cfg := config.Default()
	cfg.Backend, cfg.ArenaSize, cfg.AuditPersonal = config.BackendInmem, 1<<20, config.AuditPersonalSealed
	k, _ := openWith(t, cfg)
	key, err := k.vault.Arena().New(32)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Use(func(p []byte) { hex.Decode(p, []byte(v.Key)) }); err != nil {
		t.Fatal(err)
	}
	k.personal.put(v.Owner, tenantKey{v.Generation, key})
	for _, r := range vs.Records {
		if r.Name != v.Record {
			continue
		}
		raw, err := hex.DecodeString(r.Hex)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := audit.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.OpenPersonal(rec); err != nil || rec.Actor != v.Actor || hex.EncodeToString(rec.Detail) != v.Detail {
			t.Errorf("actor %q, detail %q, %v", rec.Actor, rec.Detail, err)
		}
		return
	}
	t.Fatal("there is no such vector")
}
