package alg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	bundleVersion = 0x01

	// MaxBundle is the largest encoding of a bundle in bytes, MaxSignatures the
	// largest number of signatures in it.
	MaxBundle     = 64 << 10
	MaxSignatures = 16

	maxAlgName = 64
)

// ErrBundle is returned for bytes that are not the encoding of a bundle, and
// for signatures that have none.
var ErrBundle = errors.New("alg: invalid signature bundle")

// Signature is one signature of a bundle: who made it, with which track, and
// its bytes.
type Signature struct {
	KID   string // with its version, "…#vN"
	Alg   string // name of the track
	Value []byte // not empty
}

// AppendBundle appends the binary form of 1 to MaxSignatures signatures, or
// returns dst unchanged and [ErrBundle]:
//
//	0x01
//	count  1 byte
//	count × { LP(kid) LP(alg) LP(value) }
//
// where LP(x) is the length of x in 2 bytes, big-endian, followed by x. No two
// signatures may agree in both kid and alg.
func AppendBundle(dst []byte, sigs []Signature) ([]byte, error) {
	if err := checkBundle(sigs); err != nil {
		return dst, err
	}
	size := 2
	for _, s := range sigs {
		size += 6 + len(s.KID) + len(s.Alg) + len(s.Value)
	}
	if size > MaxBundle {
		return dst, fmt.Errorf("%w: %d bytes, more than %d", ErrBundle, size, MaxBundle)
	}
	dst = append(dst, bundleVersion, byte(len(sigs)))
	for _, s := range sigs {
		dst = appendLP(dst, s.KID)
		dst = appendLP(dst, s.Alg)
		dst = appendLP(dst, s.Value)
	}
	return dst, nil
}

// ParseBundle is the inverse of [AppendBundle]. It accepts exactly what that
// returns, and keeps no reference to b. It judges form alone: whether a
// signature's Alg is on the list of this package, and whether its Value is a
// signature, is found out when it is verified, so that one foreign or broken
// signature does not hide the others.
func ParseBundle(b []byte) ([]Signature, error) {
	if len(b) < 2 || len(b) > MaxBundle || b[0] != bundleVersion {
		return nil, fmt.Errorf("%w: version or length", ErrBundle)
	}
	count, rest := int(b[1]), b[2:]
	if count < 1 || count > MaxSignatures {
		return nil, fmt.Errorf("%w: %d signatures", ErrBundle, count)
	}
	sigs := make([]Signature, count)
	for i := range sigs {
		var field [3][]byte
		for j := range field {
			var ok bool
			if field[j], rest, ok = cutLP(rest); !ok {
				return nil, fmt.Errorf("%w: signature %d is cut short", ErrBundle, i)
			}
		}
		sigs[i] = Signature{KID: string(field[0]), Alg: string(field[1]), Value: bytes.Clone(field[2])}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last signature", ErrBundle, len(rest))
	}
	if err := checkBundle(sigs); err != nil {
		return nil, err
	}
	return sigs, nil
}

func checkBundle(sigs []Signature) error {
	if len(sigs) < 1 || len(sigs) > MaxSignatures {
		return fmt.Errorf("%w: %d signatures", ErrBundle, len(sigs))
	}
	type signer struct{ kid, alg string }
	seen := make(map[signer]bool, len(sigs))
	for i, s := range sigs {
		switch {
		case !validKID(s.KID):
			return fmt.Errorf("%w: signature %d: kid names no key version", ErrBundle, i)
		case !validAlgName(s.Alg):
			return fmt.Errorf("%w: signature %d: alg is not a name", ErrBundle, i)
		case len(s.Value) == 0 || len(s.Value) > MaxBundle-2:
			return fmt.Errorf("%w: signature %d: value has %d bytes", ErrBundle, i, len(s.Value))
		case seen[signer{s.KID, s.Alg}]:
			// Counted twice, it would meet a policy that asks for two signers.
			return fmt.Errorf("%w: signature %d: same kid and alg as an earlier one", ErrBundle, i)
		}
		seen[signer{s.KID, s.Alg}] = true
	}
	return nil
}

// validAlgName reports whether s has the form of a track's name: 1 to 64 of
// the characters a-z, 0-9 and "-".
func validAlgName(s string) bool {
	if s == "" || len(s) > maxAlgName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func cutLP(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
