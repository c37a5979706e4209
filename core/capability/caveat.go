package capability

import (
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
	holds   func(c condition, r Request) bool
	refusal *Refusal // when it does not hold
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
		name: "kid-prefix", parse: parseKIDPrefix,
		holds:   func(c condition, r Request) bool { return under(r.KID, c.text, "/#") },
		refusal: refuseKID,
	},
	{
		name: "purpose-prefix", parse: parsePurposePrefix,
		holds:   func(c condition, r Request) bool { return under(r.Purpose, c.text, ":") },
		refusal: refusePurpose,
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

// parseSeconds reads a Unix time in seconds, 1 to maxSeconds, in decimal
// without sign or leading zero.
func parseSeconds(value string) (condition, bool) {
	if value == "" || value[0] < '1' || value[0] > '9' {
		return condition{}, false
	}
	n, err := strconv.ParseInt(value, 10, 64)
	return condition{num: n}, err == nil && n <= maxSeconds
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

// anyScope tells whether one of the scopes is in mask.
func anyScope(mask int64, scopes []string) bool {
	for _, s := range scopes {
		if scopeBit(s)&mask != 0 {
			return true
		}
	}
	return false
}
