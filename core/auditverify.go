package core

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

const (
	// sampleOf is of how many verdicts one is recorded, with that count, when
	// they are sampled.
	sampleOf = 64

	// maxVerdicts bounds the sums of verdicts about different keys between two
	// writings. Then they are summed up per tenant, and with twice as many
	// without one: who makes up keys or has many cannot fill the memory.
	maxVerdicts = 1024
	otherKeys   = "other keys"
)

// verdicts decides which verdicts of verify get a record of their own, and
// sums up the others. Nothing here waits for the log.
type verdicts struct {
	mode string

	// One verdict of each sampleOf in turn is recorded, and nobody outside can
	// tell which: neither a batch of just that many nor a caller who counts
	// gets around it.
	seen atomic.Uint64
	seed maphash.Seed

	mu   sync.Mutex // guards sums
	sums map[verdict]uint64
}

// verdict is what is summed up.
type verdict struct {
	op, tenant string
	kid        api.KID // without version
	result     string
}

func newVerdicts(mode string) *verdicts {
	return &verdicts{mode: mode, seed: maphash.MakeSeed(), sums: make(map[verdict]uint64)}
}

// sampled counts a verdict and reports whether it is the one to record.
func (v *verdicts) sampled() bool {
	n := v.seen.Add(1) - 1
	return n%sampleOf == maphash.Comparable(v.seed, n/sampleOf)%sampleOf
}

// add sums up a verdict.
func (v *verdicts) add(exact verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := exact
	if _, ok := v.sums[at]; !ok && len(v.sums) >= maxVerdicts {
		at = verdict{op: exact.op, tenant: exact.tenant, result: exact.result}
	}
	if _, ok := v.sums[at]; !ok && len(v.sums) >= 2*maxVerdicts {
		at = verdict{op: exact.op, result: exact.result}
	}
	v.sums[at]++
}

// take returns the sums and begins anew.
func (v *verdicts) take() map[verdict]uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	sums := v.sums
	v.sums = make(map[verdict]uint64)
	return sums
}

// offerEntry hands the record of an entry over without waiting, unless it is a
// verdict that the settings leave out or sum up. Errors and refusals never
// are.
func (k *KMS) offerEntry(c *call, e entry) {
	count := uint64(0)
	if verifies(c.verb) && (e.result == "" || e.result == resultInvalid) {
		switch k.verdicts.mode {
		case config.AuditVerifySampled:
			if !k.verdicts.sampled() {
				return
			}
			count = sampleOf
		case config.AuditVerifyAggregate:
			result := e.result
			if result == "" {
				result = resultOK
			}
			k.verdicts.add(verdict{c.verb.Name, c.target.Tenant, e.kid.Base(), result})
			return
		}
	}
	r := k.newRecord(c, audit.KindOperation, e)
	r.Count = count
	k.offer(r)
}

// flushVerdicts writes the sums of verdicts: each is one record of its key.
func (k *KMS) flushVerdicts() {
	for v, n := range k.verdicts.take() {
		r := &audit.Record{Kind: audit.KindOperation, Time: k.clock(), Op: v.op, Tenant: v.tenant, Result: v.result, Count: n}
		if v.kid.IsZero() {
			r.Detail = []byte(otherKeys)
		} else {
			r.Key, r.Alg, r.Purpose = v.kid.String(), v.kid.Alg, v.kid.Purpose
		}
		k.offer(r)
	}
}

// verifies reports whether a verb gives verdicts.
func verifies(v *Verb) bool { return v.Name == "verify" || v.Name == "verify_batch" }
