package core_test

import (
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/audit/witness"
	"github.com/rustyonions/ron-kms/core"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// What of the audit log works and should be looked at is told: an anchor is
// named in the metrics, a witness that does not answer in the readiness.
func TestAuditDegraded(t *testing.T) {
	t.Parallel()
	vkey, err := witness.Init(filepath.Join(t.TempDir(), "witness"), "witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	nobody := httptest.NewServer(nil)
	url := nobody.URL
	nobody.Close()
	cfg := Config(t)
	Init(t, cfg)
	cfg.AuditAnchorDir = filepath.Join(t.TempDir(), "anchor")
	cfg.AuditWitnesses = []string{vkey + "@" + url}
	k := Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready || !slices.Contains(r.Degraded, "audit_witness") || slices.Contains(r.Degraded, "audit_anchor") {
		t.Errorf("%+v", r)
	}
	w := httptest.NewRecorder()
	k.Metrics().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`kms_audit_anchor_lag_records{anchor="dir:` + cfg.AuditAnchorDir + `"} `, `kms_audit_witness_size{witness="witness.example/w1"} 0`, "kms_audit_full 0",
		"kms_audit_lost_total 0", "kms_audit_size ", "kms_audit_checkpoint_size ", "kms_audit_pending_records ", "kms_audit_scrubbed_bundles_total ",
	} {
		if !strings.Contains(w.Body.String(), "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
}
