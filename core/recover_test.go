package core_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

func options() core.Options {
	return core.Options{Passphrase: func() ([]byte, error) { return []byte(Passphrase), nil }}
}

// mustRecover looks first, which must change nothing, and then recovers.
func mustRecover(t *testing.T, cfg *config.Config) *core.RecoverReport {
	t.Helper()
	ctx := context.Background()
	plan, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{})
	if err != nil || plan.Done {
		t.Fatalf("%+v, %v", plan, err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "audit.next")); !os.IsNotExist(err) {
		t.Fatalf("looking made a log: %v", err)
	}
	done, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{Reason: "tried in a test", Accept: true})
	if err != nil || !done.Done || done.Verdict != plan.Verdict || done.Adopted != plan.Adopted || !slices.Equal(done.Lost, plan.Lost) {
		t.Fatalf("%+v, %v; announced was %+v", done, err, plan)
	}
	return done
}

// keyOf describes a key of an open store by its kid without version.
func keyOf(t *testing.T, k *core.KMS, kid string) api.Key {
	t.Helper()
	return Get(t, k, Session(t, k, "acme"), Base(kid)).Key
}

// Whatever happened to the log, a recovery leads to a store that is ready, stays ready, signs and verifies; the new log says
// what was given up and why, before anything else; the refused one can still be looked at. R-413.
func TestRecover(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	base := Base(d.first)
	for _, c := range []struct {
		name    string
		harm    func(t *testing.T, dir string)
		verdict audit.Verdict
		all     bool // the whole log is right
	}{
		{"no log", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "audit")); err != nil {
				t.Fatal(err)
			}
		}, audit.VerdictMissing, false},
		{"no segment", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "audit", "seg-00000000")); err != nil {
				t.Fatal(err)
			}
		}, audit.VerdictMissing, false},
		{"no format", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "audit", "format")); err != nil {
				t.Fatal(err)
			}
		}, audit.VerdictMissing, false},
		{"last commit of the log zeroed", func(t *testing.T, dir string) { cutLog(t, dir, 1) }, audit.VerdictTampered, false},
		{"last ten commits of the log zeroed", func(t *testing.T, dir string) { cutLog(t, dir, 10) }, audit.VerdictTampered, false},
		{"old log", func(t *testing.T, dir string) { replace(t, d.then, dir, "audit") }, core.VerdictContradiction, true},
		{"old keys.db", func(t *testing.T, dir string) { replace(t, d.then, dir, "keys.db") }, core.VerdictContradiction, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := Config(t)
			Copy(t, d.now, cfg.Dir)
			c.harm(t, cfg.Dir)
			k := Open(t, cfg, core.Options{})
			s := Session(t, k, "acme")
			if k.Ready().Ready || !Verify(t, k, s, Digest(1), d.sigs).OK {
				t.Fatal("before the recovery")
			}
			k.Close()
			report := mustRecover(t, cfg)
			if report.Verdict != c.verdict && !(c.verdict == audit.VerdictTampered && report.Verdict != core.VerdictContradiction) {
				t.Errorf("%s: %s", report.Verdict, report.Found)
			}
			for range 2 {
				k = Open(t, cfg, core.Options{})
				if r := k.Ready(); !r.Ready {
					t.Fatalf("after the recovery: %+v", r)
				}
				s = Session(t, k, "acme")
				if !Verify(t, k, s, Digest(1), d.sigs).OK {
					t.Error("an old signature does not verify")
				}
				signed := Sign(t, k, s, base, Digest(9))
				if signed.Receipt.Log != report.NewOrigin || k.VerifierKey() != report.VerifierKey {
					t.Errorf("a receipt of %s, keys %s", signed.Receipt.Log, k.VerifierKey())
				}
				Create(t, k, s, "ed25519")
				Rotate(t, k, s, base)
				k.Close()
			}
			records := Audit(t, cfg, report.VerifierKey)
			if r := records[1]; r.Kind != audit.KindRecovery || r.Op != "accepted" {
				t.Fatalf("the second record is %s %s", r.Kind, r.Op)
			}
			var detail struct {
				Verdict, Found, Reason, Origin string
				Records, Adopted               int
			}
			if err := json.Unmarshal(records[1].Detail, &detail); err != nil {
				t.Fatal(err)
			}
			if detail.Reason != "tried in a test" || detail.Verdict != string(report.Verdict) || detail.Found != report.Found ||
				detail.Records != int(report.Records) || detail.Adopted != report.Adopted || detail.Origin != report.Origin {
				t.Errorf("detail %+v", detail)
			}
			if _, err := core.Recover(context.Background(), cfg, options(), core.RecoverOptions{Reason: "x", Accept: true}); !errors.Is(err, core.ErrNothingToRecover) {
				t.Errorf("a store in order was recovered: %v", err)
			}
			if report.Refused == "" {
				if c.name != "no log" {
					t.Error("the refused log is nowhere")
				}
				return
			}
			keys, err := audit.StoredKeys(report.Refused)
			if err != nil && c.name != "no format" {
				t.Fatal(err)
			}
			if err == nil {
				if _, err := audit.Verify(context.Background(), report.Refused, audit.VerifyOptions{Keys: keys}); (err == nil) != c.all {
					t.Errorf("the refused log: %v", err)
				}
			}
		})
	}
}

// A store that was put back lacks keys and has others as they were. What the log knows of them is told; what was destroyed since is
// destroyed again, wherever the log is damaged besides; what was derived, destroyed and lost cannot be derived again..
func TestRecoverNeverResurrects(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	destroyed := Create(t, k, s, "ed25519").KID
	rotated := Create(t, k, s, "ed25519").KID
	kem := Create(t, k, s, "x25519").KID
	root := Create(t, k, s, "hkdf-sha256").KID
	Rotate(t, k, s, Base(kem)) // to version 2; version 1 still unwraps
	envelope := Wrap(t, k, s, Base(kem), 32).WrappedB64
	sigs := Sign(t, k, s, destroyed, Digest(1)).Sigs
	k.Close()
	then := filepath.Join(t.TempDir(), "then")
	Copy(t, cfg.Dir, then)

	k = Open(t, cfg, core.Options{})
	s = Session(t, k, "acme")
	Destroy(t, k, s, Base(destroyed))
	Destroy(t, k, s, Base(kem)+"#v2")
	Rotate(t, k, s, Base(rotated))
	lost := Create(t, k, s, "ed25519").KID
	child := Derive(t, k, s, Base(root), "once", "aes-256-gcm").KID
	Destroy(t, k, s, Base(child))
	k.Close()

	for _, harm := range []struct {
		name string
		fn   func(t *testing.T, log string)
	}{
		{"the log is whole", func(*testing.T, string) {}},
		{"the log has no format", func(t *testing.T, log string) {
			if err := os.Remove(filepath.Join(log, "format")); err != nil {
				t.Fatal(err)
			}
		}},
		{"the log is damaged at its beginning", func(t *testing.T, log string) {
			for _, name := range []string{"seg-00000000", "data-00000000"} {
				b, err := os.ReadFile(filepath.Join(log, name))
				if err != nil {
					t.Fatal(err)
				}
				b[strings.Index(string(b), "acme")] ^= 1
				if err := os.WriteFile(filepath.Join(log, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(harm.name, func(t *testing.T) {
			t.Parallel()
			old := Config(t)
			Copy(t, cfg.Dir, old.Dir)
			replace(t, then, old.Dir, "keys.db")
			harm.fn(t, filepath.Join(old.Dir, "audit"))
			report := mustRecover(t, old)
			want := []string{Base(destroyed), Base(kem)}
			slices.Sort(want)
			if !slices.Equal(report.Destroyed, want) || !slices.Equal(report.Rotated, []string{Base(rotated)}) {
				t.Errorf("destroyed %v, rotated %v", report.Destroyed, report.Rotated)
			}
			want = []string{Base(lost), Base(child)}
			slices.Sort(want)
			if !slices.Equal(report.Lost, want) {
				t.Errorf("lost %v", report.Lost)
			}
			// And once more: the second log tells a still older store the same.
			again := Config(t)
			k := Open(t, old, core.Options{})
			k.Close()
			Copy(t, old.Dir, again.Dir)
			replace(t, then, again.Dir, "keys.db")
			second := mustRecover(t, again)
			if !strings.Contains(second.Found, "one of them was put back") || second.NewOrigin == report.NewOrigin || !slices.Equal(second.Destroyed, report.Destroyed) || !slices.Contains(second.Lost, Base(child)) {
				t.Errorf("the second time: %+v", second)
			}
			for _, cfg := range []*config.Config{old, again} {
				k := Open(t, cfg, core.Options{})
				if r := k.Ready(); !r.Ready {
					t.Fatalf("%+v", r)
				}
				s := Session(t, k, "acme")
				if got := keyOf(t, k, destroyed); got.State != api.StateDestroyed {
					t.Errorf("the destroyed key is %s", got.State)
				}
				if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: Base(destroyed), PayloadB3: Digest(1)}); Code(err) != api.CodeKeyDestroyed {
					t.Errorf("sign with the destroyed key: %v", err)
				}
				if !Verify(t, k, s, Digest(1), sigs).OK {
					t.Error("a signature of the destroyed key does not verify")
				}
				if _, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: Base(kem), WrappedB64: envelope}); err == nil {
					t.Error("a destroyed version unwraps")
				}
				if _, err := Do[api.DeriveResponse](k, s, "derive", &api.DeriveRequest{
					OpID: uuid.NewString(), KID: Base(root), Context: "once", Alg: "aes-256-gcm",
				}); Code(err) != api.CodeKeyDestroyed {
					t.Errorf("deriving what was destroyed: %v", err)
				}
				Derive(t, k, s, Base(root), "another", "aes-256-gcm")
				k.Close()
			}
		})
	}
}

// A key that somebody was about to destroy when the records end counts as destroyed: that its end was never reported is no proof.
func TestRecoverDestroysWhatWasAsked(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	k.Close()
	keys, err := os.ReadFile(filepath.Join(cfg.Dir, "keys.db"))
	if err != nil {
		t.Fatal(err)
	}
	k = Open(t, cfg, core.Options{})
	Destroy(t, k, Session(t, k, "acme"), Base(kid))
	live := filepath.Join(t.TempDir(), "live")
	Copy(t, cfg.Dir, live) // a process that is killed now
	k.Close()
	cfg.Dir = live
	cutLog(t, live, 1) // the result
	if err := os.WriteFile(filepath.Join(live, "keys.db"), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	if report := mustRecover(t, cfg); !slices.Equal(report.Destroyed, []string{Base(kid)}) {
		t.Errorf("%+v", report)
	}
}

// A recovery says why or does nothing, and never works on a store that is open, damaged, or in order.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	if _, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{}); !api.HasReason(err, api.ReasonStoreBusy) {
		t.Errorf("an open store: %v", err)
	}
	k.Close()
	if _, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{}); !errors.Is(err, core.ErrNothingToRecover) {
		t.Errorf("a store in order: %v", err)
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "audit", "head")); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"", "two\nlines", strings.Repeat("x", 1001), "\xff"} {
		if _, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{Reason: reason, Accept: true}); !api.HasReason(err, api.ReasonMalformed) {
			t.Errorf("reason %.10q: %v", reason, err)
		}
	}
	wrong := core.Options{Passphrase: func() ([]byte, error) { return []byte("wrong"), nil }}
	if _, err := core.Recover(ctx, cfg, wrong, core.RecoverOptions{Reason: "x", Accept: true}); !api.HasReason(err, api.ReasonPassphrase) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	records(t, cfg.Dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("key/"+Base(kid)), []byte("x")) })
	if _, err := core.Recover(ctx, cfg, options(), core.RecoverOptions{Reason: "x", Accept: true}); !api.HasReason(err, api.ReasonStoreTampered) {
		t.Errorf("a damaged store: %v", err)
	}
	memory := config.Default()
	memory.Backend = config.BackendInmem
	if _, err := core.Recover(ctx, memory, core.Options{}, core.RecoverOptions{}); !api.HasReason(err, api.ReasonConfig) {
		t.Errorf("a store in memory: %v", err)
	}
}

// KMS_AUDIT_MIN_INDEX alone can refuse a log. A recovery says that it must go, because it is of the old log.
func TestRecoverMinIndex(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	k.Close()
	cfg.AuditMinIndex = 1 << 20
	report := mustRecover(t, cfg)
	if !report.MinIndex || report.Verdict != core.VerdictContradiction {
		t.Errorf("%+v", report)
	}
	cfg.AuditMinIndex = 0
	if r := Open(t, cfg, core.Options{}).Ready(); !r.Ready {
		t.Errorf("%+v", r)
	}
}
