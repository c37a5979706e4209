package api

import (
	"strconv"
	"strings"
)

// Sizes of identifiers in bytes.
const (
	MaxLabel = 255 // one tenant or purpose label
	MaxKID   = 640 // a whole kid with its version
)

// A KID names a key, and with Version a version of it:
//
//	<tenant>/<purpose>/<alg>/<uuid>#vN
//
// The grammar is docs/spec/kid.md. Tenant and purpose are labels, alg is an
// algorithm name, uuid is canonical lower case. Version 0 means none given.
// KIDs are comparable and so can be map keys.
type KID struct {
	Tenant, Purpose, Alg, ID string
	Version                  uint32
}

// ParseKID parses a kid. The alias "Ed25519" is accepted for "ed25519"; apart
// from it, parsing and printing are inverse. Errors have reason "kid" and do
// not repeat the input.
func ParseKID(s string) (KID, error) {
	bad := func(what string) (KID, error) { return KID{}, NewError(ReasonKID, "kid "+what) }
	if len(s) > MaxKID {
		return bad("is longer than 640 bytes")
	}
	base, ver, versioned := strings.Cut(s, "#")
	parts := strings.Split(base, "/")
	if len(parts) != 4 {
		return bad("is not tenant/purpose/alg/uuid#vN")
	}
	k := KID{Tenant: parts[0], Purpose: parts[1], Alg: parts[2], ID: parts[3]}
	if !ValidLabel(k.Tenant) || !ValidLabel(k.Purpose) {
		return bad("has a tenant or purpose that is not a label")
	}
	if k.Alg == "Ed25519" {
		k.Alg = "ed25519"
	}
	if !validAlgText(k.Alg) {
		return bad("has an alg that is not an algorithm name")
	}
	if _, err := ParseUUID(k.ID); err != nil {
		return bad("has no canonical lower-case UUID")
	}
	if versioned {
		n, ok := parseVersion(ver)
		if !ok {
			return bad("has a version that is not vN with N from 1")
		}
		k.Version = n
	}
	return k, nil
}

// parseVersion parses "vN", N from 1 to 2^32-1 without leading zeros.
func parseVersion(s string) (uint32, bool) {
	digits, ok := strings.CutPrefix(s, "v")
	if !ok || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// String prints the kid, with its version if it has one.
func (k KID) String() string {
	b := make([]byte, 0, len(k.Tenant)+len(k.Purpose)+len(k.Alg)+len(k.ID)+16)
	b = append(b, k.Tenant...)
	b = append(b, '/')
	b = append(b, k.Purpose...)
	b = append(b, '/')
	b = append(b, k.Alg...)
	b = append(b, '/')
	b = append(b, k.ID...)
	if k.Version != 0 {
		b = append(b, "#v"...)
		b = strconv.AppendUint(b, uint64(k.Version), 10)
	}
	return string(b)
}

// Base is the kid without its version: the name of the key.
func (k KID) Base() KID { k.Version = 0; return k }

// At is the kid of version n of the same key.
func (k KID) At(n uint32) KID { k.Version = n; return k }

// IsZero reports whether k names nothing.
func (k KID) IsZero() bool { return k == KID{} }

// ValidLabel reports whether s is a label: it begins with an ASCII letter or
// digit, goes on with those and "._:-", is 1 to 255 bytes long, and has
// neither "::" inside nor ":" at its end. The last two keep
// "ron-kms::<tenant>::<purpose>::<ctx>" injective.
func ValidLabel(s string) bool {
	if s == "" || len(s) > MaxLabel || !isAlnum(s[0]) || s[len(s)-1] == ':' {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		if !isAlnum(c) && c != '.' && c != '_' && c != ':' && c != '-' {
			return false
		}
		if c == ':' && s[i-1] == ':' {
			return false
		}
	}
	return true
}

// validAlgText checks the syntax of an algorithm name; whether it is on the
// allow-list is package alg's to say.
func validAlgText(s string) bool {
	if s == "" || len(s) > 64 || !isAlnum(s[0]) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !isAlnum(c) && c != '-' && c != '+' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
