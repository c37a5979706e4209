package admit

import (
	"math"
	"time"
)

// A bucket is a token bucket that may go into debt, kept as what is missing:
// its zero value is full. Rate and burst are given with each call, so that new
// limits hold at once and what was used stays used. golang.org/x/time/rate is
// not used because there an operation dearer than the burst can never pass, and
// several buckets cannot be asked before any is charged.
type bucket struct {
	debt float64 // units taken and not refilled, at the time at
	at   int64   // ns
}

// settle refills by the time passed. Clocks of callers that overtake each other
// do not matter: an earlier time refills nothing.
func (b *bucket) settle(now int64, perSecond float64) {
	if now <= b.at {
		return
	}
	b.debt = max(0, b.debt-float64(now-b.at)*perSecond/1e9)
	b.at = now
}

// wait settles and says how long there are not n units, or not a full bucket if
// n is more than it holds; 0 if they may be taken. It is rounded up.
func (b *bucket) wait(now int64, perSecond, burst, n float64) time.Duration {
	b.settle(now, perSecond)
	missing := b.debt + min(n, burst) - burst
	if missing <= 0 {
		return 0
	}
	ns := math.Ceil(missing / perSecond * 1e9)
	if ns >= float64(maxRetryAfter) {
		return maxRetryAfter
	}
	return time.Duration(ns) + 1 // the quotient may have been rounded down
}

// take takes n units, which wait has found to be there.
func (b *bucket) take(n float64) { b.debt += n }

// full settles and reports whether nothing is missing.
func (b *bucket) full(now int64, perSecond float64) bool {
	b.settle(now, perSecond)
	return b.debt == 0
}
