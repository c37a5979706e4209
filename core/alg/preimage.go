package alg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// preimageDomain begins every preimage of the scheme ron-kms/v1.
const preimageDomain = "ron-kms/sign/v1\x00"

// Limits of the fields of a Statement and a Signature, in bytes.
const (
	MaxContext = 255
	MaxKID     = 640 + len("#v18446744073709551615")
)

// ErrStatement is returned for a Statement that has no preimage.
var ErrStatement = errors.New("alg: invalid statement")

// Statement is what a signature of the scheme ron-kms/v1 states: that this key
// version, as part of this suite, signs this digest, in this context, for this
// time. Every track of a hybrid key signs the preimage of the same statement,
// so a signature that was stripped of its other half still says that there was
// one.
type Statement struct {
	Suite   string // canonical name of the key's algorithm
	KID     string // the key's name with its version, "…#vN", N from 1
	Context []byte // chosen by the caller, at most MaxContext bytes, may be empty

	// NotBefore and NotAfter bound the time for which the statement is meant,
	// both inclusive, in milliseconds since 1970 UTC. 0 stands for no bound.
	NotBefore, NotAfter int64

	Digest [32]byte // BLAKE3 of the payload
}

// AppendPreimage appends the bytes that are signed for s, and returns dst
// unchanged and [ErrStatement] if s is invalid. Two different valid statements
// never have the same preimage:
//
//	"ron-kms/sign/v1" 0x00
//	LP(suite) LP(kid) LP(context)
//	notBefore  8 bytes
//	notAfter   8 bytes
//	digest    32 bytes
//
// where LP(x) is the length of x in 2 bytes, followed by x, and all integers
// are big-endian.
func (s *Statement) AppendPreimage(dst []byte) ([]byte, error) {
	_, signs := canonical(s.Suite, OpSign)
	switch {
	case !signs:
		return dst, fmt.Errorf("%w: suite is not an algorithm that signs", ErrStatement)
	case !validKID(s.KID):
		return dst, fmt.Errorf("%w: kid names no key version", ErrStatement)
	case len(s.Context) > MaxContext:
		return dst, fmt.Errorf("%w: context has %d bytes, more than %d", ErrStatement, len(s.Context), MaxContext)
	case s.NotBefore < 0 || s.NotAfter < 0:
		return dst, fmt.Errorf("%w: time bound is negative", ErrStatement)
	case s.NotAfter != 0 && s.NotAfter < s.NotBefore:
		return dst, fmt.Errorf("%w: time window is empty", ErrStatement)
	}
	dst = append(dst, preimageDomain...)
	dst = appendLP(dst, s.Suite)
	dst = appendLP(dst, s.KID)
	dst = appendLP(dst, s.Context)
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.NotBefore))
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.NotAfter))
	return append(dst, s.Digest[:]...), nil
}

// appendLP appends the length of p in 2 bytes, big-endian, and p. The caller
// has checked that p is shorter than 64 KiB.
func appendLP[T string | []byte](dst []byte, p T) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p)))
	return append(dst, p...)
}

// validKID reports whether kid ends in a version: "#v" and a decimal number
// from 1 to 2^64-1 without leading zeros. What is before it is for the caller
// to judge; here it may be anything but empty or with a "#".
func validKID(kid string) bool {
	name, version, ok := strings.Cut(kid, "#v")
	if !ok || len(kid) > MaxKID || name == "" || strings.Contains(name, "#") || strings.HasPrefix(version, "0") {
		return false
	}
	_, err := strconv.ParseUint(version, 10, 64)
	return err == nil
}
