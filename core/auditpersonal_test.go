package core_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

func sealedStore(t testing.TB) (*config.Config, *core.InitReport, *core.KMS) {
	t.Helper()
	cfg := Config(t)
	cfg.AuditPersonal = config.AuditPersonalSealed
	report := Init(t, cfg)
	return cfg, report, Open(t, cfg, core.Options{})
}

// inFiles reports whether a file below dir holds text.
func inFiles(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			found = append(found, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// mixed does some of everything for two tenants, and returns a key of acme.
func mixed(t *testing.T, k *core.KMS) string {
	t.Helper()
	s, stranger := Session(t, k, "acme"), Session(t, k, "other")
	kid := Create(t, k, s, "ed25519").KID
	sigs := Sign(t, k, s, kid, Digest(1)).Sigs
	Verify(t, k, s, Digest(1), sigs)
	Create(t, k, stranger, "ed25519")
	if _, err := Do[api.SignResponse](k, stranger, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(2)}); err == nil {
		t.Fatal("a stranger signed")
	}
	rotate := &api.RotateRequest{OpID: uuid.NewString(), KID: kid}
	Must[api.RotateResponse](t, k, s, "rotate", rotate)
	Must[api.RotateResponse](t, k, s, "rotate", rotate) // replayed: has a detail
	return kid
}

// personal are the records of a log that have something to seal.
func personal(all []Entry) (some []Entry) {
	for _, r := range all {
		if r.Tenant != "" && (r.Actor != "" || len(r.Detail) > 0 || len(r.Sealed) > 0) && r.Op != "erase" && r.Op != "reveal" {
			some = append(some, r)
		}
	}
	return some
}

// With sealed personal data no actor and no detail is in any file in clear, and the engine opens each. R-013.
func TestPersonalSealed(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	kid := mixed(t, k)
	k.Close()
	k = Open(t, cfg, core.Options{})
	var kinds []audit.Kind
	details := make(map[string]int)
	for _, r := range personal(Audit(t, cfg, report.VerifierKey)) {
		if r.Actor != "" || len(r.Detail) > 0 || len(r.Sealed) == 0 {
			t.Fatalf("record %d in clear: %s", r.Index, lineOf(r.Record))
		}
		if err := k.OpenPersonal(r.Record); err != nil || !strings.HasPrefix(r.Actor, "cap:") {
			t.Fatalf("record %d: actor %q, %v", r.Index, r.Actor, err)
		}
		kinds = append(kinds, r.Kind)
		details[string(r.Detail)]++
		if r.Kind == audit.KindDenied != bytes.Contains(r.Sealed, []byte("other")) && r.Tenant == "acme" {
			t.Errorf("record %d: owner of %s: %q", r.Index, lineOf(r.Record), r.Sealed)
		}
		if in := inFiles(t, cfg.Dir, r.Actor); in != nil {
			t.Errorf("%q is in %v", r.Actor, in)
		}
	}
	for _, kind := range []audit.Kind{audit.KindIntent, audit.KindOperation, audit.KindDenied} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("no %s was sealed", kind)
		}
	}
	if details["replayed"] != 1 || details[Base(kid)] == 0 && details[kid] == 0 {
		t.Errorf("details %v", details)
	}
	// The other way round the search must find something.
	clearCfg, _, ck := store(t)
	mixed(t, ck)
	ck.Close()
	if inFiles(t, clearCfg.Dir, "cap:") == nil || inFiles(t, cfg.Dir, "cap:") != nil {
		t.Error("the search finds nothing, or what it should not")
	}
}

// A sealed field opens in its own record only: each part that it is bound to, and each of its bytes, counts. R-014.
func TestPersonalBound(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	mixed(t, k)
	var r, other *audit.Record
	for _, e := range personal(Audit(t, cfg, report.VerifierKey)) {
		switch {
		case e.Op == "rotate" && e.Kind == audit.KindOperation && r == nil:
			r = e.Record
		case e.Tenant == "other":
			other = e.Record
		}
	}
	opens := func(r audit.Record) bool { return k.OpenPersonal(&r) == nil }
	if !opens(*r) || !opens(*other) {
		t.Fatal("the records do not open")
	}
	for name, change := range map[string]func(*audit.Record){
		"kind":       func(r *audit.Record) { r.Kind = audit.KindDenied },
		"op":         func(r *audit.Record) { r.Op = "rotat" },
		"op_id":      func(r *audit.Record) { r.OpID[3] ^= 1 },
		"tenant":     func(r *audit.Record) { r.Tenant = "other" },
		"key":        func(r *audit.Record) { r.Key += "x" },
		"op and key": func(r *audit.Record) { r.Op, r.Key = r.Op+r.Key[:1], r.Key[1:] },
		"input_hash": func(r *audit.Record) { r.InputHash[0] ^= 1 },
		"swapped":    func(r *audit.Record) { r.Sealed = other.Sealed },
		"cut":        func(r *audit.Record) { r.Sealed = r.Sealed[:len(r.Sealed)-1] },
		"longer":     func(r *audit.Record) { r.Sealed = append(bytes.Clone(r.Sealed), 0) },
		"header":     func(r *audit.Record) { r.Sealed = r.Sealed[:5] },
		"owner cut":  func(r *audit.Record) { r.Sealed = append(bytes.Clone(r.Sealed[:5]), 200, 'x') },
		"nothing":    func(r *audit.Record) { r.Sealed = []byte{1} },
	} {
		c := *r
		change(&c)
		if opens(c) {
			t.Errorf("%s: opens", name)
		}
	}
	for i := range r.Sealed {
		c := *r
		c.Sealed = bytes.Clone(r.Sealed)
		c.Sealed[i] ^= 1
		if opens(c) {
			t.Errorf("byte %d: opens", i)
		}
	}
}

// Erasing destroys what a tenant's records say of people, and nothing else: not another tenant's, not one byte of the log. It is on
// record, and the next session has a new key..
func TestErase(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	mixed(t, k)
	k = reopen(t, k) // so that all is on disk
	ctx := context.Background()
	before := Audit(t, cfg, report.VerifierKey)
	raw := func(r *audit.Record) string {
		b, err := r.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct {
		tenant string
		code   api.Code
	}{{"nobody", api.CodeNotFound}, {"", api.CodeBadRequest}, {"a/b", api.CodeBadRequest}} {
		if err := k.EraseTenant(ctx, tt.tenant); Code(err) != tt.code {
			t.Errorf("erase %q: %v", tt.tenant, err)
		}
	}
	Session(t, k, "acme") // the key is in use
	if err := k.EraseTenant(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if err := k.EraseTenant(ctx, "acme"); Code(err) != api.CodeNotFound {
		t.Errorf("erased twice: %v", err)
	}
	check := func(k *core.KMS, when string) {
		t.Helper()
		after := Audit(t, cfg, report.VerifierKey)
		erased, kept := 0, 0
		for i, r := range before {
			if raw(r.Record) != raw(after[i].Record) {
				t.Fatalf("%s: record %d changed", when, i)
			}
			if len(r.Sealed) == 0 {
				continue
			}
			copied := *r.Record
			err := k.OpenPersonal(&copied)
			byOther := r.Tenant == "other" || bytes.Contains(r.Sealed, []byte("other"))
			switch {
			case byOther && err == nil:
				kept++
			case !byOther && errors.Is(err, core.ErrErased) && copied.Actor == "" && copied.Detail == nil:
				erased++
			default:
				t.Errorf("%s: record %d of %s: %v", when, i, r.Tenant, err)
			}
		}
		if erased < 5 || kept < 3 {
			t.Errorf("%s: %d erased, %d kept", when, erased, kept)
		}
	}
	check(k, "erased")
	s := Session(t, k, "acme")
	sign := Sign(t, k, s, Create(t, k, s, "ed25519").KID, Digest(3))
	check(k, "with a new key")
	k.Close()
	k = Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Fatalf("not ready: %+v", r)
	}
	check(k, "reopened")
	erasures := 0
	for _, r := range Audit(t, cfg, report.VerifierKey) {
		if r.Op == "erase" && r.Tenant == "acme" && r.Actor == "operator" {
			erasures++
		}
		if r.Index == sign.Receipt.LogIndex {
			if err := k.OpenPersonal(r.Record); err != nil || r.Actor == "" {
				t.Errorf("the new key: %v", err)
			}
		}
	}
	if erasures != 2 {
		t.Errorf("%d records of the erasure", erasures)
	}
}

// What was sealed leaves the file of the store too, once that is written anew; without that it need not.
func TestEraseCompact(t *testing.T) {
	t.Parallel()
	cfg, _, k := sealedStore(t)
	mixed(t, k)
	sealed := core.SealedTenantKey(t, k, "acme")
	if len(inFiles(t, cfg.Dir, sealed)) == 0 {
		t.Fatal("the key is not in the store")
	}
	if err := k.EraseTenant(context.Background(), "acme"); err != nil {
		t.Fatal(err)
	}
	if err := file.Compact(cfg.Dir); err == nil {
		t.Error("compacted while it is open")
	}
	k.Close()
	if err := file.Compact(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if in := inFiles(t, cfg.Dir, sealed); in != nil {
		t.Errorf("the erased key is still in %v", in)
	}
	k = Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Fatalf("not ready: %+v", r)
	}
	s := Session(t, k, "other")
	if keys := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "other"}).Keys; len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
}

// Reveal shows a record of the tenant that was asked for, puts that on record, and nothing else.
func TestReveal(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	ctx := context.Background()
	kid := mixed(t, k)
	s := Session(t, k, "acme")
	index := Sign(t, k, s, Base(kid), Digest(4)).Receipt.LogIndex
	r, err := k.Reveal(ctx, "acme", index)
	if err != nil || !strings.HasPrefix(r.Actor, "cap:") || r.Op != "sign" {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, tt := range []struct {
		tenant string
		index  uint64
	}{{"other", index}, {"", index}, {"acme", 1 << 40}, {"acme", 0}, {"", 0}} {
		if _, err := k.Reveal(ctx, tt.tenant, tt.index); Code(err) != api.CodeNotFound {
			t.Errorf("reveal %d to %q: %v", tt.index, tt.tenant, err)
		}
	}
	if err := k.EraseTenant(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Reveal(ctx, "acme", index); !errors.Is(err, core.ErrErased) {
		t.Errorf("after erasure: %v", err)
	}
	revealed := 0
	for _, r := range Audit(t, cfg, report.VerifierKey) {
		if r.Op == "reveal" {
			revealed++
		}
	}
	if revealed != 1 {
		t.Errorf("%d revelations on record", revealed)
	}
	k.Close()
	if _, err := k.Reveal(ctx, "acme", index); Code(err) == "" {
		t.Error("revealed when closed")
	}
}

// Turning the setting on or off changes what comes after, and what was sealed still opens; a store in memory can seal too.
func TestPersonalSetting(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	mixed(t, k)
	k.Close()
	n := len(personal(Audit(t, cfg, report.VerifierKey)))
	cfg.AuditPersonal = config.AuditPersonalClear
	k = Open(t, cfg, core.Options{})
	mixed(t, k)
	for i, r := range personal(Audit(t, cfg, report.VerifierKey)) {
		if sealed := len(r.Sealed) > 0; sealed != (i < n) {
			t.Errorf("record %d: sealed %v", r.Index, sealed)
		}
		if err := k.OpenPersonal(r.Record); err != nil || r.Actor == "" {
			t.Errorf("record %d: %v", r.Index, err)
		}
	}
	memory := config.Default()
	memory.Backend, memory.ArenaSize, memory.AuditPersonal = config.BackendInmem, 1<<20, config.AuditPersonalSealed
	k = Open(t, memory, core.Options{})
	mixed(t, k)
	if err := k.EraseTenant(context.Background(), "acme"); err != nil {
		t.Error(err)
	}
}

// More tenants than keys are kept open: each still seals, and opens.
func TestPersonalManyTenants(t *testing.T) {
	t.Parallel()
	cfg, report, k := sealedStore(t)
	const tenants = 270 // more than maxTenantKeys
	for i := range tenants {
		s := Session(t, k, "t"+strings.Repeat("x", i%7)+uuid.NewString())
		if _, err := Do[api.ListResponse](k, s, "list", &api.ListRequest{Tenant: s.Tenant()}); err != nil {
			t.Fatal(err)
		}
	}
	if n := core.OpenTenantKeys(k); n > 256 {
		t.Errorf("%d keys are open", n)
	}
	k.Close()
	k = Open(t, cfg, core.Options{})
	opened := 0
	for _, r := range personal(Audit(t, cfg, report.VerifierKey)) {
		if err := k.OpenPersonal(r.Record); err != nil || r.Actor == "" {
			t.Fatal(err)
		}
		opened++
	}
	if opened != tenants || core.OpenTenantKeys(k) > 256 {
		t.Errorf("%d of %d opened, %d keys open", opened, tenants, core.OpenTenantKeys(k))
	}
}

// BenchmarkSign measures what sealing adds to a signature.
func BenchmarkSign(b *testing.B) {
	for _, how := range []string{config.AuditPersonalClear, config.AuditPersonalSealed} {
		b.Run(how, func(b *testing.B) {
			cfg := config.Default()
			cfg.Backend, cfg.ArenaSize, cfg.AuditPersonal = config.BackendInmem, 1<<20, how
			k := Open(b, cfg, core.Options{})
			s := Session(b, k, "acme")
			kid := Create(b, k, s, "ed25519").KID
			for b.Loop() {
				Sign(b, k, s, kid, Digest(1))
			}
		})
	}
}
