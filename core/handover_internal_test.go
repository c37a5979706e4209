package core

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// New keys of the log that are cut off at any step: the next opening has the old keys or the new, never none, signs with them, and
// auditors who have the first keys verify all of it. R-271.
func TestRotateAuditKeyCutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	whole, kid, sigs, first := crashStore(t)
	old, err := notekey.ParseSet(first)
	if err != nil {
		t.Fatal(err)
	}
	const decided = 3
	for n := range 6 {
		t.Run(fmt.Sprint(n, " steps"), func(t *testing.T) {
			t.Parallel()
			cfg := *whole
			cfg.Dir = filepath.Join(t.TempDir(), "store")
			copyStore(t, whole.Dir, cfg.Dir)
			k, _ := crashOpen(t, &cfg)
			h := &handover{k: k}
			if len(h.steps()) != 5 {
				t.Fatal("the steps are not those that this test knows")
			}
			for _, step := range h.steps()[:n] {
				if err := step(ctx); err != nil {
					t.Fatal(err)
				}
			}
			killed := cfg
			killed.Dir = filepath.Join(t.TempDir(), "killed")
			copyStore(t, cfg.Dir, killed.Dir)
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
			for _, cfg := range []*config.Config{&killed, &cfg} {
				k, s := crashOpen(t, cfg)
				if ready := k.Ready(); !ready.Ready {
					t.Fatalf("ready: %+v", ready)
				}
				stillVerifies(t, k, s, sigs)
				if _, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1}); err != nil {
					t.Error(err)
				}
				if changed := k.VerifierKey() != first; changed != (n >= decided) || changed && k.VerifierKey() != h.report.New {
					t.Errorf("the keys are %s", k.VerifierKey())
				}
				handovers := 0
				for _, r := range k.read(t) {
					if r.Kind == audit.KindKeys {
						handovers++
					}
				}
				if want := map[bool]int{true: 1}[n >= decided]; handovers != want {
					t.Errorf("%d handovers on record, want %d", handovers, want)
				}
				if staged, err := stagedRecords(ctx, k.vault); err != nil || len(staged) != 0 {
					t.Errorf("%d keys are still staged, %v", len(staged), err)
				}
				if err := k.Close(); err != nil {
					t.Fatal(err)
				}
				for _, keys := range []*notekey.Set{old, k.signer.keys} {
					if rep, err := audit.Verify(ctx, auditDir(cfg.Dir), audit.VerifyOptions{Keys: keys}); err != nil || !rep.Clean {
						t.Errorf("%+v, %v", rep, err)
					}
				}
			}
		})
	}
}

// The old private halves are gone after a change, and a second change works like the first.
func TestRotateAuditKeyForgets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg, _, _, first := crashStore(t)
	seen := map[string]bool{first: true}
	for n := uint32(2); n <= 3; n++ {
		k, _ := crashOpen(t, cfg)
		before, err := k.vault.attestationRecords(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		report, err := RotateAuditKey(ctx, cfg, crashOptions())
		if err != nil || !seen[report.Old] || seen[report.New] {
			t.Fatalf("%+v, %v", report, err)
		}
		seen[report.New] = true
		k, _ = crashOpen(t, cfg)
		if k.VerifierKey() != report.New {
			t.Errorf("signs with %s", k.VerifierKey())
		}
		after, err := k.vault.attestationRecords(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range after {
			if after[i].Version != n || string(after[i].Sealed) == string(before[i].Sealed) {
				t.Errorf("half %d is of version %d", i, after[i].Version)
			}
		}
		_, err = k.vault.Load(ctx, func(name string, value []byte) error {
			for i := range before {
				if strings.Contains(string(value), api.FormatBase64(before[i].Sealed)) {
					t.Errorf("record %s has the old private half", name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A refused log keeps its keys, and so does one in memory.
func TestRotateAuditKeyRefuses(t *testing.T) {
	t.Parallel()
	cfg, _, _, _ := crashStore(t)
	if err := os.Remove(filepath.Join(auditDir(cfg.Dir), "head")); err != nil {
		t.Fatal(err)
	}
	if r, err := RotateAuditKey(context.Background(), cfg, crashOptions()); r != nil || api.AsError(err).Code != api.CodeAuditIntegrity {
		t.Errorf("%+v, %v", r, err)
	}
	memory := config.Default()
	memory.Backend = config.BackendInmem
	if r, err := RotateAuditKey(context.Background(), memory, Options{}); r != nil || !api.HasReason(err, api.ReasonConfig) {
		t.Errorf("%+v, %v", r, err)
	}
}
