package capability

import (
	"strconv"
	"strings"
)

// validLabel tells whether s is a tenant or purpose label:
// [A-Za-z0-9][A-Za-z0-9._:-]{0,254} without "::" and without ":" at the end.
func validLabel(s string) bool {
	if s == "" || len(s) > 255 || !alnum(s[0]) || s[len(s)-1] == ':' {
		return false
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case alnum(c), c == '.', c == '_', c == '-':
		case c == ':' && s[i-1] != ':':
		default:
			return false
		}
	}
	return true
}

// validKIDPrefix tells whether s is a kid, <tenant>/<purpose>/<alg>/<uuid>#vN,
// or its first one to four whole segments. The algorithm and the UUID are in
// lower case, as kids are printed.
func validKIDPrefix(s string) bool {
	s, version, versioned := strings.Cut(s, "#")
	for segment := 1; ; segment++ {
		head, rest, more := strings.Cut(s, "/")
		ok := false
		switch segment {
		case 1, 2:
			ok = validLabel(head)
		case 3:
			ok = validAlg(head)
		case 4:
			ok = validUUID(head)
		}
		if !ok {
			return false
		}
		if !more {
			return !versioned || segment == 4 && validVersion(version)
		}
		s = rest
	}
}

// validAlg tells whether s has the syntax of an algorithm name:
// [a-z0-9][a-z0-9+-]{0,63}.
func validAlg(s string) bool {
	if s == "" || len(s) > 64 || !lowerAlnum(s[0]) {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; !lowerAlnum(c) && c != '+' && c != '-' {
			return false
		}
	}
	return true
}

// validVerb tells whether s has the syntax of a verb's name:
// [a-z][a-z0-9_]{0,31}.
func validVerb(s string) bool {
	if s == "" || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; !lowerAlnum(c) && c != '_' {
			return false
		}
	}
	return true
}

// validAudience tells whether s can name a server: 1 to 255 printable ASCII
// characters, no space.
func validAudience(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// algOf returns the algorithm in a kid or its first segments, "" if it does
// not go so far.
func algOf(kid string) string {
	_, rest, _ := strings.Cut(kid, "/")
	_, rest, _ = strings.Cut(rest, "/")
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// validUUID tells whether s has the syntax of a UUID (RFC 9562 §4) in lower
// case.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
		} else if !lowerHex(s[i]) {
			return false
		}
	}
	return true
}

// validVersion tells whether s is "v" and a number from 1 to 2^32-1 without
// leading zeros.
func validVersion(s string) bool {
	digits, ok := strings.CutPrefix(s, "v")
	if !ok || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return false
	}
	_, err := strconv.ParseUint(digits, 10, 32)
	return err == nil
}

// ValidRootID tells whether s can name a root key: [a-z0-9-]{1,32}.
func ValidRootID(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		if !lowerAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

// parseIdentifier reads a token's identifier,
// "v2:<root key id>:<issued>:<32 lower-case hex digits>", and returns the root
// key id and the time of issue in Unix seconds.
func parseIdentifier(id string) (rootID string, issued int64, ok bool) {
	rest, ok := strings.CutPrefix(id, "v2:")
	if !ok {
		return "", 0, false
	}
	rootID, rest, _ = strings.Cut(rest, ":")
	seconds, nonce, _ := strings.Cut(rest, ":")
	issued, ok = parseNumber(seconds, 1, maxSeconds)
	if !ok || !ValidRootID(rootID) || len(nonce) != 32 {
		return "", 0, false
	}
	for i := range len(nonce) {
		if !lowerHex(nonce[i]) {
			return "", 0, false
		}
	}
	return rootID, issued, true
}

// under tells whether s is prefix or goes on from it at a boundary, one of
// the given bytes. So "acme/audit" covers "acme/audit/ed25519" and not
// "acme/auditor", and "#v1" does not cover "#v12".
func under(s, prefix, boundaries string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && (rest == "" || strings.IndexByte(boundaries, rest[0]) >= 0)
}

func lowerHex(c byte) bool   { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }
func lowerAlnum(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' }
func alnum(c byte) bool      { return lowerAlnum(c) || c >= 'A' && c <= 'Z' }
