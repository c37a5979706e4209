package metrics

import "github.com/prometheus/client_golang/prometheus"

// AuditState is what the metrics of the audit log show at one moment. Anchors
// and witnesses are named as in the configuration: a closed list.
type AuditState struct {
	Size, Signed uint64            // durable records, and those under the latest checkpoint
	Pending      uint64            // records that are not in tiles yet
	AnchorLag    map[string]uint64 // records that each anchor is behind
	WitnessSize  map[string]uint64 // what each witness cosigned last
	Scrubbed     uint64            // bundles read again since the log was opened
	Lost         uint64            // records offered and dropped since the log was opened
	Full         bool              // its disk is
}

var (
	auditSize       = prometheus.NewDesc("kms_audit_size", "Durable records of the audit log.", nil, nil)
	auditCheckpoint = prometheus.NewDesc("kms_audit_checkpoint_size", "Records under the latest checkpoint.", nil, nil)
	auditPending    = prometheus.NewDesc("kms_audit_pending_records", "Records that are not packed into tiles yet.", nil, nil)
	auditAnchorLag  = prometheus.NewDesc("kms_audit_anchor_lag_records", "Records that an anchor is behind the log.", []string{"anchor"}, nil)
	auditWitness    = prometheus.NewDesc("kms_audit_witness_size", "Records under the checkpoint that a witness cosigned last.", []string{"witness"}, nil)
	auditScrubbed   = prometheus.NewDesc("kms_audit_scrubbed_bundles_total", "Bundles of 256 packed records that were read again and found right.", nil, nil)
	auditLost       = prometheus.NewDesc("kms_audit_lost_total", "Records about verify and refusals that the log could not take.", nil, nil)
	auditFull       = prometheus.NewDesc("kms_audit_full", "1 if the disk of the audit log is full.", nil, nil)
)

// auditCollector asks for the state when it is scraped.
type auditCollector struct{ read func() AuditState }

// WatchAudit adds the metrics of an audit log. It is called once; read is called
// at each scrape, from any goroutine.
func (m *Metrics) WatchAudit(read func() AuditState) { m.registry.MustRegister(auditCollector{read}) }

// Describe implements [prometheus.Collector].
func (auditCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{auditSize, auditCheckpoint, auditPending, auditAnchorLag, auditWitness, auditScrubbed, auditLost, auditFull} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (c auditCollector) Collect(out chan<- prometheus.Metric) {
	s := c.read()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	send(auditSize, prometheus.GaugeValue, s.Size)
	send(auditCheckpoint, prometheus.GaugeValue, s.Signed)
	send(auditPending, prometheus.GaugeValue, s.Pending)
	for name, lag := range s.AnchorLag {
		send(auditAnchorLag, prometheus.GaugeValue, lag, name)
	}
	for name, size := range s.WitnessSize {
		send(auditWitness, prometheus.GaugeValue, size, name)
	}
	send(auditScrubbed, prometheus.CounterValue, s.Scrubbed)
	send(auditLost, prometheus.CounterValue, s.Lost)
	full := uint64(0)
	if s.Full {
		full = 1
	}
	send(auditFull, prometheus.GaugeValue, full)
}
