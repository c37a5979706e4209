package alg

import "errors"

// Mode is the condition under which the signatures of a statement count as
// valid together.
type Mode uint8

// The zero Mode is invalid. The order is of strength: each one implies those
// before it.
const (
	ModeOr     Mode = 1 // a valid classical or a valid post-quantum signature
	ModePQOnly Mode = 2 // a valid post-quantum signature
	ModeAnd    Mode = 3 // both
)

var modeNames = [...]string{ModeOr: "or", ModePQOnly: "pq_only", ModeAnd: "and"}

// ParseMode returns the mode named "or", "pq_only" or "and".
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if m > 0 && name == s {
			return Mode(m), nil
		}
	}
	return 0, errors.New("alg: no such verify mode") // s may be anything: do not echo it
}

// String returns the name that ParseMode takes, or "invalid".
func (m Mode) String() string {
	if !m.valid() {
		return "invalid"
	}
	return modeNames[m]
}

func (m Mode) valid() bool { return m >= ModeOr && m <= ModeAnd }

// Tighten returns the mode that holds when both m and o hold: the stronger of
// the two. If either is invalid so is the result, which nothing satisfies.
func (m Mode) Tighten(o Mode) Mode {
	if !m.valid() || !o.valid() {
		return 0
	}
	return max(m, o)
}

// Verdict is what became of the signatures of one class.
type Verdict uint8

// A verdict of several signatures of one class is OK if enough of them are
// valid for the caller's policy.
const (
	Absent Verdict = 0 // there was none
	Bad    Verdict = 1 // there was one, and it is not valid
	OK     Verdict = 2
)

// String returns "absent", "bad", "ok" or "invalid".
func (v Verdict) String() string {
	switch v {
	case Absent:
		return "absent"
	case Bad:
		return "bad"
	case OK:
		return "ok"
	}
	return "invalid"
}

// Satisfied reports whether the two verdicts meet the mode. ModeOr is content
// with one valid signature even if the other is bad: report that one too.
func (m Mode) Satisfied(classical, pq Verdict) bool {
	switch m {
	case ModeOr:
		return classical == OK || pq == OK
	case ModePQOnly:
		return pq == OK
	case ModeAnd:
		return classical == OK && pq == OK
	}
	return false
}
