package core

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

func crashOptions() Options {
	return Options{Passphrase: func() ([]byte, error) { return []byte(crashPassphrase), nil }}
}

// crashStore is a store with two keys, one of which is destroyed, closed.
func crashStore(t *testing.T) (cfg *config.Config, kid string, sigs []api.Signature, vkey string) {
	t.Helper()
	cfg = crashConfig(t)
	report, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10})
	if err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	var made [2]string
	for i := range made {
		r, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
		if err != nil {
			t.Fatal(err)
		}
		made[i] = r.(*api.CreateResponse).KID
	}
	signed, err := crashDo(k, s, "sign", &api.SignRequest{KID: made[0], PayloadB3: digest1})
	if err != nil {
		t.Fatal(err)
	}
	base, _, _ := strings.Cut(made[1], "#")
	if _, err := crashDo(k, s, "destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: base}); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg, made[0], signed.(*api.SignResponse).Sigs, report.VerifierKey
}

// stillVerifies checks that an open store verifies, whatever else it does.
func stillVerifies(t *testing.T, k *KMS, s *Session, sigs []api.Signature) {
	t.Helper()
	r, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: sigs})
	if err != nil || !r.(*api.VerifyResponse).OK {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// A recovery that is cut off before its commit has changed nothing that counts; one that is cut off later is finished by the next
// opening. Verify works at every moment, and the refused log is kept byte by byte. R-413.
func TestRecoveryCutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	whole, kid, sigs, _ := crashStore(t)
	const committed = 3 // steps, of which the last is the commit
	for n := range 6 {
		t.Run(fmt.Sprint(n, " steps"), func(t *testing.T) {
			t.Parallel()
			cfg := *whole
			cfg.Dir = filepath.Join(t.TempDir(), "store")
			copyStore(t, whole.Dir, cfg.Dir)
			if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "head")); err != nil {
				t.Fatal(err)
			}
			evidence := filepath.Join(t.TempDir(), "evidence")
			copyStore(t, auditDir(cfg.Dir), evidence)
			r, err := newRecovery(ctx, &cfg, crashOptions(), RecoverOptions{Reason: "a test", Accept: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.inspect(ctx); err != nil {
				t.Fatal(err)
			}
			if len(r.steps()) != 5 {
				t.Fatal("the steps are not those that this test knows")
			}
			for _, step := range r.steps()[:n] {
				if err := step(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				k, s := crashOpen(t, &cfg)
				stillVerifies(t, k, s, sigs)
				if ready := k.Ready(); ready.Ready != (n >= committed) || !ready.Verify {
					t.Fatalf("ready: %+v", ready)
				}
				if n >= committed {
					if _, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1}); err != nil {
						t.Error(err)
					}
				}
				if err := k.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if n < committed {
				if report, err := Recover(ctx, &cfg, crashOptions(), RecoverOptions{Reason: "again", Accept: true}); err != nil || !report.Done {
					t.Fatalf("recover again: %+v, %v", report, err)
				}
				k, s := crashOpen(t, &cfg)
				stillVerifies(t, k, s, sigs)
				if ready := k.Ready(); !ready.Ready {
					t.Fatalf("ready: %+v", ready)
				}
				if err := k.Close(); err != nil {
					t.Fatal(err)
				}
			}
			kept, err := filepath.Glob(auditDir(cfg.Dir) + refusedInfix + "*")
			if err != nil || len(kept) != 1 {
				t.Fatalf("the refused log is in %v, %v", kept, err)
			}
			if err := os.CopyFS(filepath.Join(evidence, "again"), os.DirFS(kept[0])); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(kept[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				a, err1 := os.ReadFile(filepath.Join(evidence, e.Name()))
				b, err2 := os.ReadFile(filepath.Join(kept[0], e.Name()))
				if err1 != nil || err2 != nil || string(a) != string(b) {
					t.Errorf("the refused log's %s was changed", e.Name())
				}
			}
			if _, err := os.Stat(nextDir(cfg.Dir)); !os.IsNotExist(err) {
				t.Errorf("the new log's first name is still there: %v", err)
			}
		})
	}
}

// What a recovery left that was killed while it made the new log does not hinder the next one.
func TestRecoveryOverHalfALog(t *testing.T) {
	t.Parallel()
	cfg, _, _, _ := crashStore(t)
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "format")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(nextDir(cfg.Dir)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(nextDir(cfg.Dir), "seg-00000000"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Recover(context.Background(), cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true}); err != nil || !r.Done {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A log that only lies where a recovery would make one is not taken, whatever it is.
func TestPlantedNextLog(t *testing.T) {
	t.Parallel()
	cfg, _, _, _ := crashStore(t)
	copyStore(t, auditDir(cfg.Dir), nextDir(cfg.Dir))
	if err := os.RemoveAll(auditDir(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	k, _ := crashOpen(t, cfg)
	if r := k.Ready(); r.Ready || r.Reason != string(api.ReasonAudit) {
		t.Errorf("%+v", r)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	// Nor is the log that was given up, behind a recovery.
	if err := os.Rename(nextDir(cfg.Dir), auditDir(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "head")); err != nil {
		t.Fatal(err)
	}
	report, err := Recover(context.Background(), cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(auditDir(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	copyStore(t, report.Refused, nextDir(cfg.Dir))
	k, _ = crashOpen(t, cfg)
	if r := k.Ready(); r.Ready {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(auditDir(cfg.Dir)); !os.IsNotExist(err) {
		t.Errorf("the log that was given up was put into its place: %v", err)
	}
}

// Anchors of a log that was given up are put away, and the new log is anchored anew: its anchor may not be emptied..
func TestRecoveryAnchors(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg, _, _, _ := crashStore(t)
	cfg.AuditAnchorDir = t.TempDir()
	k, _ := crashOpen(t, cfg)
	size := k.audit.Size()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old")
	copyStore(t, cfg.Dir, old)
	k, _ = crashOpen(t, cfg)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	copyStore(t, old, cfg.Dir) // store and log are put back together: only the anchor can tell
	report, err := Recover(ctx, cfg, crashOptions(), RecoverOptions{})
	if err != nil || report.Verdict != audit.VerdictStale || report.Anchors["dir:"+cfg.AuditAnchorDir] <= size || report.Done {
		t.Fatalf("%+v, %v", report, err)
	}
	if report, err = Recover(ctx, cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true}); err != nil || !report.Done {
		t.Fatalf("%+v, %v", report, err)
	}
	for range 2 {
		k, _ = crashOpen(t, cfg)
		if r := k.Ready(); !r.Ready {
			t.Fatalf("%+v", r)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	aside, err := filepath.Glob(filepath.Join(cfg.AuditAnchorDir, "*"+refusedInfix+"*"))
	if err != nil || len(aside) != 1 {
		t.Errorf("the old anchor is in %v, %v", aside, err)
	}
	if err := os.Remove(filepath.Join(cfg.AuditAnchorDir, "ron-kms-audit-anchor")); err != nil {
		t.Fatal(err)
	}
	k, _ = crashOpen(t, cfg)
	if r := k.Ready(); r.Ready {
		t.Error("the emptied anchor of the new log was accepted")
	}
}

// Origins of the logs of a store, and back.
func TestGenerationOf(t *testing.T) {
	t.Parallel()
	const id = "7f000000-0000-4000-8000-000000000001"
	for n := range uint32(12) {
		if got, ok := generationOf(id, auditOrigin(id, n)); !ok || got != n {
			t.Errorf("%d became %d, %t", n, got, ok)
		}
	}
	for _, origin := range []string{"", "x", "ron-kms/audit/" + id + "/", "ron-kms/audit/" + id + "/01", "ron-kms/audit/" + id + "/0",
		"ron-kms/audit/" + id + "/1/2", "ron-kms/audit/" + id + "/-1", "ron-kms/audit/" + id + "x", "ron-kms/audit/other/1"} {
		if n, ok := generationOf(id, origin); ok {
			t.Errorf("%q is %d", origin, n)
		}
	}
}

// Two logs that are given up in one second have two names.
func TestMoveAsideTwice(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Now()
	names := make(map[string]bool)
	for range 3 {
		if err := os.Mkdir(auditDir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		name, err := moveAside(dir, now)
		if err != nil || names[name] {
			t.Fatalf("%s, %v", name, err)
		}
		names[name] = true
	}
	if name, err := moveAside(dir, now); name != "" || err != nil {
		t.Errorf("nothing was moved to %s, %v", name, err)
	}
}

// A tenant whose audit key was destroyed does not get it back with an older store, and keeps the key that it got since. R-413.
func TestRecoveryErasesTenantsAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg := crashConfig(t)
	cfg.AuditPersonal = config.AuditPersonalSealed
	if _, err := Init(ctx, cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	if _, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"}); err != nil {
		t.Fatal(err)
	}
	stored := func() systemRecord {
		t.Helper()
		r, err := k.personal.stored("acme")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := stored()
	if len(first.Sealed) == 0 {
		t.Fatal("the tenant has no audit key")
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(cfg.Dir, "keys.db"))
	if err != nil {
		t.Fatal(err)
	}
	k, _ = crashOpen(t, cfg)
	if err := k.EraseTenant(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "format")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "keys.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := Recover(ctx, cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true})
	if err != nil || len(report.Erased) != 1 || report.Erased[0] != "acme" {
		t.Fatalf("%+v, %v", report, err)
	}
	k, s = crashOpen(t, cfg)
	if _, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"}); err != nil {
		t.Fatal(err)
	}
	second := stored()
	if second.Version < first.Version+2 || string(second.Sealed) == string(first.Sealed) {
		t.Errorf("generation %d follows %d, which was erased once", second.Version, first.Version)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "head")); err != nil {
		t.Fatal(err)
	}
	if report, err = Recover(ctx, cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true}); err != nil || len(report.Erased) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	k, _ = crashOpen(t, cfg)
	if r := stored(); string(r.Sealed) != string(second.Sealed) {
		t.Error("a later recovery destroyed the new key")
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	// The log that took the place of the first one knows of the erasure too.
	if err := os.WriteFile(filepath.Join(cfg.Dir, "keys.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if report, err = Recover(ctx, cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true}); err != nil || len(report.Erased) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
}

// A change that is cut off behind its effect is settled in the new log as it was in the old one, and what was asked of the old one is
// answered as then..
func TestKilledAfterARecovery(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg, kid, _, _ := crashStore(t)
	k, s := crashOpen(t, cfg)
	rotate := &api.RotateRequest{OpID: uuid.NewString(), KID: kid}
	if _, err := crashDo(k, s, "rotate", rotate); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "head")); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(ctx, cfg, crashOptions(), RecoverOptions{Reason: "x", Accept: true}); err != nil {
		t.Fatal(err)
	}
	k, s = crashOpen(t, cfg)
	if r, err := crashDo(k, s, "rotate", rotate); err != nil || !r.(*api.RotateResponse).Replayed {
		t.Errorf("a retry over the recovery: %+v, %v", r, err)
	}
	killed := *cfg
	killed.Dir = filepath.Join(t.TempDir(), "killed")
	hook := &stops{Backend: k.vault.Backend}
	hook.after = func() error { copyStore(t, cfg.Dir, killed.Dir); hook.after = nil; return nil }
	k.vault.Backend = hook
	base, _, _ := strings.Cut(kid, "#")
	again := &api.RotateRequest{OpID: uuid.NewString(), KID: base}
	if _, err := crashDo(k, s, "rotate", again); err != nil {
		t.Fatal(err)
	}
	k, s = crashOpen(t, &killed)
	if r := k.Ready(); !r.Ready {
		t.Fatalf("%+v", r)
	}
	if got := results(t, k, again.OpID); got[resultOK] != 1 || len(got) != 1 {
		t.Errorf("results on record: %v", got)
	}
	if r, err := crashDo(k, s, "rotate", again); err != nil || !r.(*api.RotateResponse).Replayed {
		t.Errorf("the retry: %+v, %v", r, err)
	}
}
