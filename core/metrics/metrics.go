// Package metrics holds the Prometheus metrics of ron-kms, one struct and one
// constructor. Names and labels are promises: docs/spec/metrics.md.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics counts what one engine does. Each engine has its own registry, so
// that several may live in one process.
type Metrics struct {
	// Ops counts finished operations. op is a verb, alg a family ("ed25519",
	// "ml-dsa", "hybrid", "none"), result "ok" or an error code.
	Ops *prometheus.CounterVec
	// Latency is the time of an operation from authorized to durable, seconds.
	Latency *prometheus.HistogramVec
	// Reject counts refusals by reason, a word of the error table.
	Reject *prometheus.CounterVec
	// Keys is the number of keys that can still sign.
	Keys *prometheus.GaugeVec
	// Attest counts attestation evidence produced.
	Attest *prometheus.CounterVec
	// PQMode is 1 for the phase of the post-quantum migration and the verify
	// mode that are in force.
	PQMode *prometheus.GaugeVec
	// PQRollout is how many percent of the tenants and purposes these hold for.
	PQRollout prometheus.Gauge
	// AuditIntegrityFailed counts verdicts against the audit log or the store.
	AuditIntegrityFailed prometheus.Counter

	registry *prometheus.Registry
}

// latencyBuckets are seconds: primitives take tens of microseconds, a durable
// commit some hundreds, a loaded disk milliseconds.
var latencyBuckets = []float64{
	10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1,
}

// New makes the metrics and registers them, together with the Go runtime's and
// the process's own.
func New() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		Ops: counter("kms_ops_total", "Finished operations.", "op", "alg", "result"),
		Latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kms_latency_seconds", Help: "Time of an operation from authorized to durable.", Buckets: latencyBuckets,
		}, []string{"op", "alg"}),
		Reject: counter("kms_reject_total", "Refused requests.", "reason"),
		Keys: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kms_keys_total", Help: "Keys that can sign.",
		}, []string{"tenant", "purpose", "alg"}),
		Attest: counter("kms_attest_total", "Attestation evidence produced.", "backend"),
		PQMode: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kms_pq_mode", Help: "1 for the phase of the post-quantum migration and the verify mode in force.",
		}, []string{"phase", "mode"}),
		PQRollout: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kms_pq_rollout_percent", Help: "Share of tenants and purposes that the phase holds for.",
		}),
		AuditIntegrityFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kms_audit_integrity_failed_total", Help: "Verdicts that the audit log or the store was tampered with.",
		}),
		registry: prometheus.NewRegistry(),
	}
	m.registry.MustRegister(m.Ops, m.Latency, m.Reject, m.Keys, m.Attest, m.PQMode, m.PQRollout, m.AuditIntegrityFailed,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe records one finished operation.
func (m *Metrics) Observe(op, family, result string, took time.Duration) {
	m.Ops.WithLabelValues(op, family, result).Inc()
	m.Latency.WithLabelValues(op, family).Observe(took.Seconds())
}

// Migration says which phase of the post-quantum migration is in force, the
// verify mode that it demands, and for how many percent of the tenants and
// purposes.
func (m *Metrics) Migration(phase, mode string, percent int) {
	m.PQMode.Reset()
	m.PQMode.WithLabelValues(phase, mode).Set(1)
	m.PQRollout.Set(float64(percent))
}

// Handler serves the registry in the Prometheus text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Registry is for tests and for embedding programs that gather on their own.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }
