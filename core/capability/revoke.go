package capability

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Subject is what a token can be revoked by.
type Subject struct {
	Root   string // id of its root key
	ID     string // as Grant.ID
	Tenant string
	Issued int64 // Unix seconds; 0 if the token does not say
}

// Revocations tells which tokens no longer count. Both methods are called for
// each request and must be fast and safe for concurrent use.
type Revocations interface {
	// Generation changes whenever an answer of Revoked may have changed. It
	// must not change before Revoked answers anew.
	Generation() uint64
	// Revoked tells whether the token does not count any more.
	Revoked(Subject) bool
}

// life remembers whether a token was revoked, so that a request asks anew
// only when something was.
type life struct {
	revocations Revocations
	subject     Subject
	last        atomic.Uint64 // generation<<1 of the last answer, and 1 if revoked; 0 before
}

// lasts tells whether the token still counts.
func (l *life) lasts() bool {
	generation := l.revocations.Generation()<<1 + 2 // never 0
	if last := l.last.Load(); last&^1 == generation {
		return last&1 == 0
	}
	// If the generation moves on between the two calls, the answer is newer
	// than the number it is kept under, and the next call asks again.
	if l.revocations.Revoked(l.subject) {
		l.last.Store(generation | 1)
		return false
	}
	l.last.Store(generation)
	return true
}

// answered is the generation of the last answer. generation is that of now:
// while the two agree, nothing was revoked in between.
func (l *life) answered() uint64 {
	if l == nil {
		return 0
	}
	return l.last.Load()>>1 - 1
}

func (l *life) generation() uint64 {
	if l == nil {
		return 0
	}
	return l.revocations.Generation()
}

// Limits of a list of revocations.
const (
	MaxRevocationsBytes = 1 << 20
	// RevocationPoll is how often Watch reads the list.
	RevocationPoll = time.Second
)

const revocationsHeader = "ron-kms revocations 1"

// A Revocation is one line of a list of revocations. Exactly one of Root,
// Token and Tenant is given.
type Revocation struct {
	Root   string // all tokens under this root key
	Token  string // the token of this Grant.ID, and all made from it
	Tenant string // all tokens of this tenant that were issued before Before
	Before int64  // Unix seconds
}

// String is the line without its end, "" if r is not well-formed.
func (r Revocation) String() string {
	var line string
	switch {
	case r.Root != "":
		line = "root " + r.Root
	case r.Token != "":
		line = "token " + r.Token
	default:
		line = "tenant " + r.Tenant + " " + strconv.FormatInt(r.Before, 10)
	}
	if again, ok := parseRevocation(line); !ok || again != r {
		return ""
	}
	return line
}

func parseRevocation(line string) (r Revocation, ok bool) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "root":
		return Revocation{Root: rest}, validRevokedRoot(rest)
	case "token":
		return Revocation{Token: rest}, validTokenID(rest)
	case "tenant":
		tenant, before, _ := strings.Cut(rest, " ")
		n, ok := parseNumber(before, 1, maxSeconds)
		return Revocation{Tenant: tenant, Before: n}, ok && validLabel(tenant)
	}
	return Revocation{}, false
}

// validTokenID tells whether s is "cap:" or "ron:" and 16 lower-case hex
// digits.
func validTokenID(s string) bool {
	if len(s) != 20 || s[:4] != "cap:" && s[:4] != "ron:" {
		return false
	}
	for i := 4; i < len(s); i++ {
		if !lowerHex(s[i]) {
			return false
		}
	}
	return true
}

// validRevokedRoot tells whether s is the id of a root key, or "ron-auth:"
// and that of a ron-auth key.
func validRevokedRoot(s string) bool {
	if kid, ok := strings.CutPrefix(s, "ron-auth:"); ok {
		return ValidForeignKID(kid)
	}
	return ValidRootID(s)
}

// ValidForeignKID tells whether s can name a key of another issuer:
// [A-Za-z0-9._-]{1,64}.
func ValidForeignKID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alnum(c) && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// ParseRevocations reads a list of revocations (docs/spec/token.md §6): a
// header line, then one revocation a line; lines that begin with "#" are for
// people. Every line ends in a line feed, so that a list that was cut off is
// not taken for a shorter one in the middle of a line. An error names the line.
func ParseRevocations(text []byte) ([]Revocation, error) {
	if len(text) > MaxRevocationsBytes {
		return nil, fmt.Errorf("capability: revocations: longer than %d bytes", MaxRevocationsBytes)
	}
	body, ok := bytes.CutPrefix(text, []byte(revocationsHeader+"\n"))
	if !ok {
		return nil, fmt.Errorf("capability: revocations: line 1 is not %q", revocationsHeader)
	}
	var list []Revocation
	for n := 2; len(body) > 0; n++ {
		line, rest, ok := bytes.Cut(body, []byte("\n"))
		body = rest
		if ok && len(line) > 0 && line[0] == '#' {
			continue
		}
		r, good := parseRevocation(string(line))
		if !ok || !good {
			return nil, fmt.Errorf("capability: revocations: line %d is not well-formed", n)
		}
		list = append(list, r)
	}
	return list, nil
}

// AppendRevocation returns a list with one more revocation. Empty text is the
// empty list.
func AppendRevocation(text []byte, r Revocation) ([]byte, error) {
	if len(text) == 0 {
		text = []byte(revocationsHeader + "\n")
	}
	line := r.String()
	if line == "" {
		return nil, errors.New("capability: revocations: nothing that could be revoked")
	}
	next := append(append(bytes.Clone(text), line...), '\n')
	_, err := ParseRevocations(next)
	return next, err
}

// revocationSet is a list for looking up.
type revocationSet struct {
	generation    uint64
	roots, tokens map[string]bool
	tenants       map[string]int64 // to the latest Before
}

func newRevocationSet(list []Revocation) *revocationSet {
	s := &revocationSet{roots: map[string]bool{}, tokens: map[string]bool{}, tenants: map[string]int64{}}
	for _, r := range list {
		switch {
		case r.Root != "":
			s.roots[r.Root] = true
		case r.Token != "":
			s.tokens[r.Token] = true
		default:
			s.tenants[r.Tenant] = max(s.tenants[r.Tenant], r.Before)
		}
	}
	return s
}

// A RevocationList is Revocations of a text that changes while the server
// runs. It never forgets what it knows because the text is not there or can
// not be read.
type RevocationList struct {
	read func() ([]byte, error)
	set  atomic.Pointer[revocationSet]

	mu   sync.Mutex // one Reload at a time; guards text
	text []byte     // of the set; nil if there was none yet
}

// NewRevocationList reads a list for the first time. An error of read that is
// fs.ErrNotExist means that nothing is revoked yet; every other one, and a
// text that is not well-formed, is an error here.
func NewRevocationList(read func() ([]byte, error)) (*RevocationList, error) {
	l := &RevocationList{read: read}
	l.set.Store(newRevocationSet(nil))
	if err := l.Reload(); err != nil {
		return nil, err
	}
	return l, nil
}

// Generation implements [Revocations].
func (l *RevocationList) Generation() uint64 { return l.set.Load().generation }

// Revoked implements [Revocations].
func (l *RevocationList) Revoked(t Subject) bool {
	s := l.set.Load()
	return s.roots[t.Root] || s.tokens[t.ID] || t.Issued < s.tenants[t.Tenant]
}

// Reload reads the text again. If that fails, or the text is gone or not
// well-formed, the last good set stays.
func (l *RevocationList) Reload() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, err := l.read()
	switch {
	case errors.Is(err, fs.ErrNotExist) && l.text == nil:
		return nil
	case err != nil:
		return fmt.Errorf("capability: revocations: %w", err)
	case l.text != nil && bytes.Equal(text, l.text):
		return nil
	}
	list, err := ParseRevocations(text)
	if err != nil {
		return err
	}
	next := newRevocationSet(list)
	next.generation = l.set.Load().generation + 1
	l.text = append([]byte{}, text...)
	l.set.Store(next)
	return nil
}

// Watch calls Reload every RevocationPoll until ctx ends. The text itself is
// compared, not its time, which a copy or a coarse clock can leave unchanged.
// report gets each error once, and nil when it is over; it may be nil.
func (l *RevocationList) Watch(ctx context.Context, report func(error)) {
	tick := time.NewTicker(RevocationPoll)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := l.Reload()
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != last && report != nil {
			report(err)
		}
		last = now
	}
}
