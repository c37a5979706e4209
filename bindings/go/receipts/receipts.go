// Package receipts remembers the receipts of a ron-kms service and refuses
// results that show it put back to an earlier state.
//
//	book, err := receipts.Open("/var/lib/app/receipts", receipts.Options{})
//	mark := book.Mark() // before the request is sent
//	resp, err := call(request)
//	err = book.Check(mark, kid, resp.Receipt) // before the result is used
//
// The rules and the file are those of docs/spec/receipts.md, shared with the
// implementations in C, Python and Rust.
package receipts

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
)

// Limits of a book.
const (
	DefaultMaxKeys = 100_000
	MaxKeys        = 1_000_000
	MaxLogs        = 64

	maxNumber = math.MaxInt64
	maxOrigin = 255
	maxKID    = 640
)

// ErrInvalid is matched by errors about receipts, kids and origins that have
// the wrong form, and about origins that cannot be accepted or forgotten.
var ErrInvalid = errors.New("receipts: invalid")

// A Receipt says where in which audit log an operation stands.
type Receipt struct {
	Log            string `json:"log"`             // origin of the log
	LogIndex       uint64 `json:"log_index"`       // index of the operation's record, from 0
	KeySeq         uint64 `json:"key_seq"`         // records of the key so far, from 1; 0 if no key is concerned
	CheckpointSize uint64 `json:"checkpoint_size"` // records under the latest checkpoint
}

// A Reason is the rule that a rolled-back log broke.
type Reason string

// The reasons of a [RollbackError], by rule of docs/spec/receipts.md.
const (
	ReasonStopped    Reason = "stopped"    // rule 4: an earlier receipt showed it
	ReasonIndex      Reason = "index"      // rule 5
	ReasonCheckpoint Reason = "checkpoint" // rule 6
	ReasonKey        Reason = "key"        // rule 7
)

// A RollbackError says that a log went back. The result must not be used.
type RollbackError struct {
	Reason  Reason
	Receipt Receipt
	KID     string // without version; empty if no key is concerned
}

func (e *RollbackError) Error() string {
	return fmt.Sprintf("receipts: rollback of %s (%s): record %d, sequence %d of key %q, checkpoint over %d",
		e.Receipt.Log, e.Reason, e.Receipt.LogIndex, e.Receipt.KeySeq, e.KID, e.Receipt.CheckpointSize)
}

// A LogChangedError says that a receipt is not of the current log. If the
// service began a new log, [Book.Accept] it.
type LogChangedError struct {
	Current string // empty if there is none
	Got     string
}

func (e *LogChangedError) Error() string {
	return fmt.Sprintf("receipts: log changed from %q to %q", e.Current, e.Got)
}

// Options are the choices of a book.
type Options struct {
	// MaxKeys is how many keys are remembered, from 1 to 1,000,000. 0 means
	// [DefaultMaxKeys].
	MaxKeys int
}

// A Mark is what a [Book] knew before a request was sent. The zero Mark knows
// nothing.
type Mark struct {
	generation uint64
	next, size uint64
}

// A Book remembers receipts of one service. Its zero value is an empty book in
// memory. All methods may be called by several goroutines.
type Book struct {
	file *file // nil in memory; set before use

	saving sync.Mutex // held while the file is written, and by Close; taken before mu

	mu         sync.Mutex // guards what follows
	maxKeys    int        // 0: DefaultMaxKeys
	logs       []logState // in the order in which they came to be known
	current    int        // 1 + place in logs; 0: none
	keys       map[string]*list.Element
	order      list.List // of keyState; rose longest ago first
	generation uint64    // counts changes of the current log by the user
	changes    uint64
	saved      uint64 // value of changes in the file
}

type logState struct {
	origin     string
	stopped    bool // only of the current one
	size, next uint64
}

type keyState struct {
	kid        string
	seq, index uint64
}

// New returns an empty book in memory.
func New(o Options) (*Book, error) {
	if o.MaxKeys < 0 || o.MaxKeys > MaxKeys {
		return nil, fmt.Errorf("%w: max keys %d", ErrInvalid, o.MaxKeys)
	}
	return &Book{maxKeys: o.MaxKeys}, nil
}

// Mark returns what the book knows now. Take one at the start of each call.
func (b *Book) Mark() Mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := Mark{generation: b.generation}
	if b.current > 0 {
		l := &b.logs[b.current-1]
		m.next, m.size = l.next, l.size
	}
	return m
}

// Check compares the receipt of a call with its mark and with what the book
// knows, and remembers it. Kid is the key that the receipt is about, with or
// without a version; empty if none is. The error is a [*RollbackError], a
// [*LogChangedError] or matches [ErrInvalid]; on each of them the result must
// not be used. Check each receipt once.
func (b *Book) Check(m Mark, kid string, r Receipt) error {
	kid, err := baseKID(kid)
	if err != nil {
		return err
	}
	if !validText(r.Log, maxOrigin) {
		return fmt.Errorf("%w: log of the receipt", ErrInvalid)
	}
	if r.LogIndex >= maxNumber || r.KeySeq > maxNumber || r.CheckpointSize > maxNumber || (r.KeySeq == 0) != (kid == "") {
		return fmt.Errorf("%w: receipt of key %q: %+v", ErrInvalid, kid, r)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l, err := b.pin(r.Log)
	if err != nil {
		return err
	}
	if reason := b.judge(m, l, kid, r); reason != "" {
		if !l.stopped {
			l.stopped = true
			b.changes++
		}
		return &RollbackError{reason, r, kid}
	}
	if r.CheckpointSize > l.size {
		l.size = r.CheckpointSize
		b.changes++
	}
	if r.LogIndex >= l.next {
		l.next = r.LogIndex + 1
		b.changes++
	}
	if kid != "" {
		b.rise(keyState{kid, r.KeySeq, r.LogIndex})
	}
	return nil
}

// pin returns the current log if it is origin, and makes it that if it is the
// first: rules 2 and 3. The caller holds mu.
func (b *Book) pin(origin string) (*logState, error) {
	if b.current > 0 {
		if l := &b.logs[b.current-1]; l.origin == origin {
			return l, nil
		}
		return nil, &LogChangedError{b.logs[b.current-1].origin, origin}
	}
	if b.find(origin) >= 0 {
		return nil, &LogChangedError{"", origin}
	}
	if len(b.logs) == MaxLogs {
		return nil, fmt.Errorf("%w: %d logs are remembered", ErrInvalid, MaxLogs)
	}
	b.logs = append(b.logs, logState{origin: origin})
	b.current = len(b.logs)
	b.changes++
	return &b.logs[b.current-1], nil
}

// judge is rules 4 to 7. It returns the one that is broken, or "". The caller
// holds mu.
func (b *Book) judge(m Mark, l *logState, kid string, r Receipt) Reason {
	if m.generation != b.generation {
		m = Mark{}
	}
	switch {
	case l.stopped:
		return ReasonStopped
	case r.LogIndex < m.next || r.LogIndex < m.size || r.LogIndex+1 == l.next:
		return ReasonIndex
	case r.CheckpointSize < m.size:
		return ReasonCheckpoint
	}
	if e := b.keys[kid]; e != nil {
		k := e.Value.(keyState)
		// Differences of numbers below 2^63 do not overflow.
		ds, di := int64(r.KeySeq-k.seq), int64(r.LogIndex-k.index)
		if up := ds > 0 && ds <= di; !up && !(ds < 0 && ds >= di) {
			return ReasonKey
		}
	}
	return ""
}

// rise remembers k if it is higher than what is known of its key, and forgets
// what is too much. The caller holds mu.
func (b *Book) rise(k keyState) {
	if e := b.keys[k.kid]; e != nil {
		if e.Value.(keyState).seq < k.seq {
			e.Value = k
			b.order.MoveToBack(e)
			b.changes++
		}
		return
	}
	if b.keys == nil {
		b.keys = make(map[string]*list.Element)
	}
	k.kid = strings.Clone(k.kid) // not the caller's whole response
	b.keys[k.kid] = b.order.PushBack(k)
	b.changes++
	limit := b.maxKeys
	if limit == 0 {
		limit = DefaultMaxKeys
	}
	if b.order.Len() > limit {
		delete(b.keys, b.order.Remove(b.order.Front()).(keyState).kid)
	}
}

// Accept makes origin the current log. The one before is left: its sizes stay,
// its keys are forgotten. Accepting the current log changes nothing, so a
// stopped one remains stopped. The error matches [ErrInvalid] if origin is none,
// or one too many.
func (b *Book) Accept(origin string) error {
	if !validText(origin, maxOrigin) {
		return fmt.Errorf("%w: origin %q", ErrInvalid, origin)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.find(origin)
	if at >= 0 && at == b.current-1 {
		return nil
	}
	if at < 0 {
		if len(b.logs) == MaxLogs {
			return fmt.Errorf("%w: %d logs are remembered", ErrInvalid, MaxLogs)
		}
		b.logs = append(b.logs, logState{origin: origin})
		at = len(b.logs) - 1
	}
	if b.current > 0 {
		b.logs[b.current-1].stopped = false
	}
	b.change(at + 1)
	return nil
}

// Forget removes all memory of the log of that origin, keys included. It is the
// way to go on with a stopped log. The error matches [ErrInvalid] if it is not
// known.
func (b *Book) Forget(origin string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.find(origin)
	if at < 0 {
		return fmt.Errorf("%w: no log %q is remembered", ErrInvalid, origin)
	}
	b.logs = append(b.logs[:at], b.logs[at+1:]...)
	switch {
	case at == b.current-1:
		b.change(0)
	case at < b.current-1:
		b.current--
	}
	b.changes++
	return nil
}

// change makes another log current, or none. The caller holds mu.
func (b *Book) change(current int) {
	b.current = current
	b.keys = nil
	b.order.Init()
	b.generation++
	b.changes++
}

// find returns the place of origin in logs, or -1. The caller holds mu.
func (b *Book) find(origin string) int {
	for i := range b.logs {
		if b.logs[i].origin == origin {
			return i
		}
	}
	return -1
}

// baseKID checks the form of a kid and cuts its version off. Empty is none.
func baseKID(kid string) (string, error) {
	base, version, found := strings.Cut(kid, "#")
	if kid == "" {
		return "", nil
	}
	if found {
		digits, ok := strings.CutPrefix(version, "v")
		if n, err := parseNumber(digits); !ok || err != nil || n == 0 || n > math.MaxUint32 {
			return "", fmt.Errorf("%w: version of kid %q", ErrInvalid, kid)
		}
	}
	if !validText(base, maxKID) {
		return "", fmt.Errorf("%w: kid %q", ErrInvalid, kid)
	}
	return base, nil
}

// validText reports whether s is 1 to n bytes of ASCII without spaces and
// control characters.
func validText(s string, n int) bool {
	if s == "" || len(s) > n {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
