package core

import (
	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/metrics"
)

// anchorFarBehind is how many records an anchor may lag: some checkpoints, each
// of which writes it.
const anchorFarBehind = 4 * audit.DefaultCheckpointRecords

// auditDegraded is what of the audit log works and should be looked at.
func (k *KMS) auditDegraded() (parts []string) {
	if k.audit == nil {
		return nil
	}
	if _, faults := k.audit.Witnesses(); len(faults) > 0 {
		parts = append(parts, "audit_witness")
	}
	behind := len(k.audit.AnchorFaults()) > 0
	for _, lag := range k.audit.AnchorLag() {
		behind = behind || lag > anchorFarBehind
	}
	if behind {
		parts = append(parts, "audit_anchor")
	}
	return parts
}

// auditState is what the metrics show of the audit log.
func (k *KMS) auditState() metrics.AuditState {
	l := k.audit
	signed := l.Signed() // first: the log grows
	seen, _ := l.Witnesses()
	return metrics.AuditState{
		Size: l.Size(), Signed: signed, Pending: l.Unpacked(), AnchorLag: l.AnchorLag(), WitnessSize: seen,
		Scrubbed: l.Scrubbed(), Lost: l.Missed(), Full: l.Full() != nil,
	}
}
