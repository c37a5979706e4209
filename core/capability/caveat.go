package capability

import (
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Caveat is one well-formed condition of a token. The zero Caveat is none
// and is refused wherever one is taken.
type Caveat struct{ text string }

// ParseCaveat parses the text of a caveat, "name=value" with a name of the
// closed list and its value in the one canonical form (docs/spec/token.md).
// Its errors are refusals with reason caveat-unknown or caveat-malformed.
func ParseCaveat(text string) (Caveat, error) {
	if _, bad := parseCondition(text); bad != nil {
		return Caveat{}, bad
	}
	return Caveat{text}, nil
}

// ScopeCaveat makes a scope caveat of scopes in any order, each counted once.
// An empty list and an unknown scope are refused with caveat-malformed.
func ScopeCaveat(scopes ...string) (Caveat, error) {
	for _, s := range scopes {
		if scopeBit(s) == 0 { // "kms:a,kms:b" would pass for two
			return Caveat{}, refuseCaveatMalformed
		}
	}
	sorted := slices.Clone(scopes)
	slices.Sort(sorted)
	return ParseCaveat("scope=" + strings.Join(slices.Compact(sorted), ","))
}

// String is the text of the caveat, "name=value".
func (c Caveat) String() string { return c.text }

// condition is a caveat in the form that clearing reads. Which of text and
// num has the value is for its kind to say.
type condition struct {
	kind int // index in kinds
	text string
	num  int64
}

// kind is all there is to know about one caveat name.
type kind struct {
	name      string
	mandatory bool // a token without one is refused
	// parse reads a value; it accepts one spelling for each meaning.
	parse func(value string) (condition, bool)
	// merge narrows old by c, for kinds of which a grant keeps one condition.
	// Where it is nil each is kept, and each must hold.
	merge func(old *condition, c condition)
	// holds tells whether c allows r. The Request goes by value: a pointer
	// handed to a function value would move every request to the heap.
	// It is nil for a kind that presenter looks at, and for one that is not
	// decided here but handed on.
	holds func(c condition, r Request) bool
	// presenter tells whether c allows p; Bind asks it, and Clear refuses a
	// grant that still has such a condition.
	presenter func(c condition, p Presenter) bool
	refusal   *Refusal // when it does not hold
}

// kinds is the closed list of caveats. A new caveat is a new row, with a new
// field of Request if it looks at something new. The rows are in the order in
// which they are checked, so that a token out of its time is answered 401
// whatever else is wrong.
var kinds = [...]kind{
	{
		name: "exp", mandatory: true, parse: parseSeconds,
		merge:   func(old *condition, c condition) { old.num = min(old.num, c.num) },
		holds:   func(c condition, r Request) bool { return r.Now.Unix() < c.num },
		refusal: refuseExpired,
	},
	{
		name: "nbf", parse: parseSeconds,
		merge:   func(old *condition, c condition) { old.num = max(old.num, c.num) },
		holds:   func(c condition, r Request) bool { return r.Now.Unix() >= c.num },
		refusal: refuseNotYet,
	},
	{
		name: "aud", parse: parseAudience,
		presenter: func(c condition, p Presenter) bool { return p.Audience == c.text },
		refusal:   refuseAudience,
	},
	{
		name: "client-key", parse: parseDigest,
		presenter: func(c condition, p Presenter) bool { return sameDigest(p.TLSKeyHash, c.text) },
		refusal:   refusePresenter,
	},
	{
		name: "peer-uid", parse: parseUID,
		presenter: func(c condition, p Presenter) bool { return p.PeerUID != nil && int64(*p.PeerUID) == c.num },
		refusal:   refusePresenter,
	},
	{
		name: "tenant", mandatory: true, parse: parseTenant,
		holds:   func(c condition, r Request) bool { return r.Tenant == c.text },
		refusal: refuseTenant,
	},
	{
		// Scope lists intersect. Were each checked alone, a request that
		// accepts either of two scopes could pass two disjoint lists.
		name: "scope", mandatory: true, parse: parseScopes,
		merge:   func(old *condition, c condition) { old.num &= c.num },
		holds:   func(c condition, r Request) bool { return anyScope(c.num, r.Scopes) },
		refusal: refuseScope,
	},
	{
		name: "verb", parse: parseVerbs,
		holds:   func(c condition, r Request) bool { return listed(c.text, r.Verb) },
		refusal: refuseVerb,
	},
	{
		name: "kid-prefix", parse: parseKIDPrefix,
		holds:   func(c condition, r Request) bool { return under(r.KID, c.text, "/#") },
		refusal: refuseKID,
	},
	{
		name: "purpose-prefix", parse: parsePurposePrefix,
		holds:   func(c condition, r Request) bool { return under(r.Purpose, c.text, ":") },
		refusal: refusePurpose,
	},
	{
		// The kid names the algorithm, so the two can not contradict.
		name: "alg", parse: parseAlgs,
		holds:   func(c condition, r Request) bool { return listed(c.text, algOf(r.KID)) },
		refusal: refuseAlg,
	},
	{
		name: "max-bytes", parse: parseBytes,
		merge:   func(old *condition, c condition) { old.num = min(old.num, c.num) },
		holds:   func(c condition, r Request) bool { return r.BodyBytes > 0 && r.BodyBytes <= c.num },
		refusal: refuseBody,
	},
	{
		name: "payload-b3", parse: parseDigest,
		holds:   func(c condition, r Request) bool { return sameDigest(r.Payload, c.text) },
		refusal: refusePayload,
	},
	{
		// Counting is for the step after this one: see Rate.
		name: "rate", parse: parseRate,
	},
}

// parseCondition reads the text of one caveat.
func parseCondition(text string) (condition, *Refusal) {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return condition{}, refuseCaveatMalformed
	}
	for i := range kinds {
		if kinds[i].name != name {
			continue
		}
		c, ok := kinds[i].parse(value)
		if !ok {
			return condition{}, refuseCaveatMalformed
		}
		c.kind = i
		return c, nil
	}
	return condition{}, refuseCaveatUnknown
}

// conditions reads the caveats of a token and returns them merged and in the
// order of kinds. It refuses a token that has an unknown or malformed caveat
// or lacks a mandatory one.
func conditions(texts []string) ([]condition, *Refusal) {
	var first [len(kinds)]int // 1 + where in list the first of a kind is
	list := make([]condition, 0, len(texts))
	for _, text := range texts {
		c, bad := parseCondition(text)
		if bad != nil {
			return nil, bad
		}
		if at := first[c.kind]; at == 0 {
			first[c.kind] = len(list) + 1
		} else if merge := kinds[c.kind].merge; merge != nil {
			merge(&list[at-1], c)
			continue
		}
		list = append(list, c)
	}
	for i := range kinds {
		if kinds[i].mandatory && first[i] == 0 {
			return nil, refuseCaveatMissing
		}
	}
	slices.SortStableFunc(list, func(a, b condition) int { return a.kind - b.kind })
	return list, nil
}

// maxSeconds is the last second of the year 9999, the last that RFC 3339 can
// print.
const maxSeconds = 253402300799

// maxBytes is the largest max-bytes, 1 GiB: beyond any body that is read.
const maxBytes = 1 << 30

// MaxRate is the largest number of operations a second, and the largest
// burst, in a rate caveat.
const MaxRate = 1_000_000

// parseSeconds reads a Unix time in seconds, 1 to maxSeconds, in decimal
// without sign or leading zero.
func parseSeconds(value string) (condition, bool) {
	n, ok := parseNumber(value, 1, maxSeconds)
	return condition{num: n}, ok
}

func parseTenant(value string) (condition, bool) {
	return condition{text: value}, validLabel(value)
}

func parsePurposePrefix(value string) (condition, bool) {
	return condition{text: value}, validLabel(value)
}

func parseKIDPrefix(value string) (condition, bool) {
	return condition{text: value}, validKIDPrefix(value)
}

// parseScopes reads a list of scopes separated by commas, strictly ascending
// in byte order: sorted, and none twice.
func parseScopes(value string) (condition, bool) {
	var mask int64
	for {
		name, rest, more := strings.Cut(value, ",")
		bit := scopeBit(name)
		if bit == 0 || bit <= mask { // mask's highest bit is the scope before
			return condition{}, false
		}
		mask |= bit
		if !more {
			return condition{num: mask}, true
		}
		value = rest
	}
}

// listed tells whether name is one of the names in list, which commas
// separate.
func listed(list, name string) bool {
	if name == "" {
		return false
	}
	for {
		head, rest, more := strings.Cut(list, ",")
		if head == name {
			return true
		}
		if !more {
			return false
		}
		list = rest
	}
}

// parseList reads names separated by commas, strictly ascending in byte
// order.
func parseList(value string, valid func(string) bool) (condition, bool) {
	previous := ""
	for rest, more := value, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, ",")
		if !valid(name) || name <= previous {
			return condition{}, false
		}
		previous = name
	}
	return condition{text: value}, true
}

func parseAlgs(value string) (condition, bool)  { return parseList(value, validAlg) }
func parseVerbs(value string) (condition, bool) { return parseList(value, validVerb) }

func parseAudience(value string) (condition, bool) {
	return condition{text: value}, validAudience(value)
}

// parseDigest reads 32 bytes as 64 lower-case hex digits; the condition has
// the bytes.
func parseDigest(value string) (condition, bool) {
	if len(value) != 64 {
		return condition{}, false
	}
	for i := range len(value) {
		if !lowerHex(value[i]) {
			return condition{}, false
		}
	}
	b, err := hex.DecodeString(value)
	return condition{text: string(b)}, err == nil
}

// sameDigest compares a digest that was given with a caveat's. All zeros
// means that none was given, and that is the same as none.
func sameDigest(given [32]byte, want string) bool {
	return given != [32]byte{} && string(given[:]) == want
}

// parseNumber reads a decimal number from low to high, without sign or
// leading zeros.
func parseNumber(value string, low, high int64) (int64, bool) {
	if value == "" || value[0] < '0' || value[0] > '9' || value[0] == '0' && value != "0" {
		return 0, false
	}
	n, err := strconv.ParseInt(value, 10, 64)
	return n, err == nil && n >= low && n <= high
}

// parseUID reads a user id; 2^32-1 means "none" to the system calls that take
// one.
func parseUID(value string) (condition, bool) {
	n, ok := parseNumber(value, 0, math.MaxUint32-1)
	return condition{num: n}, ok
}

func parseBytes(value string) (condition, bool) {
	n, ok := parseNumber(value, 1, maxBytes)
	return condition{num: n}, ok
}

// parseRate reads "<operations a second>/<burst>"; the condition has both, the
// burst in the low 32 bits.
func parseRate(value string) (condition, bool) {
	rate, burst, _ := strings.Cut(value, "/")
	r, ok := parseNumber(rate, 1, MaxRate)
	b, alsoOK := parseNumber(burst, 1, MaxRate)
	return condition{num: r<<32 | b}, ok && alsoOK
}

// anyScope tells whether one of the scopes is in mask.
func anyScope(mask int64, scopes []string) bool {
	for _, s := range scopes {
		if scopeBit(s)&mask != 0 {
			return true
		}
	}
	return false
}
