package alg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/core/api"
)

const (
	envelopeVersion = 0x01

	// wrapDomain begins the associated data of every envelope.
	wrapDomain = "ron-kms/wrap/v1\x00"

	// WrapInfo is the info of HPKE under which data keys are sealed.
	WrapInfo = "ron-kms/wrap/v1"

	// MaxAAD is the largest associated data of a caller, in bytes.
	MaxAAD = 1024

	// MaxEnvelope bounds the encoding of an envelope, in bytes.
	MaxEnvelope = 8 << 10
)

// ErrEnvelope is returned for bytes that are not the encoding of an envelope,
// for an Envelope that has none, and for fields that have no associated data.
var ErrEnvelope = errors.New("alg: invalid envelope")

// Envelope is a sealed data key with what is needed to open it but the key and
// the caller's associated data.
type Envelope struct {
	KID string // the sealing key with its version, "…#vN"
	Alg string // canonical name of its algorithm, of KindKEM or KindAEAD

	Enc  []byte // what SealTo returned first; empty for KindAEAD
	Body []byte // its ciphertext, or what SealWith returned
}

// AppendEnvelope appends the binary form of e, or returns dst unchanged and
// [ErrEnvelope]:
//
//	0x01
//	LP(kid) LP(alg) LP(enc)
//	length of the body  4 bytes
//	body
//
// where LP(x) is the length of x in 2 bytes, followed by x, and all integers
// are big-endian. The lengths of enc and body must be possible for alg.
func AppendEnvelope(dst []byte, e Envelope) ([]byte, error) {
	if err := e.check(); err != nil {
		return dst, err
	}
	dst = append(dst, envelopeVersion)
	dst = appendLP(dst, e.KID)
	dst = appendLP(dst, e.Alg)
	dst = appendLP(dst, e.Enc)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(e.Body)))
	return append(dst, e.Body...), nil
}

// ParseEnvelope is the inverse of [AppendEnvelope]. It accepts exactly what
// that returns, and keeps no reference to b. What it returns is not
// authenticated: open it before you believe any of it.
func ParseEnvelope(b []byte) (Envelope, error) {
	if len(b) < 1 || len(b) > MaxEnvelope || b[0] != envelopeVersion {
		return Envelope{}, fmt.Errorf("%w: version or length", ErrEnvelope)
	}
	var field [3][]byte
	rest, ok := b[1:], true
	for i := range field {
		if field[i], rest, ok = cutLP(rest); !ok {
			return Envelope{}, fmt.Errorf("%w: cut short", ErrEnvelope)
		}
	}
	if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) != uint64(len(rest)-4) {
		return Envelope{}, fmt.Errorf("%w: length of the body", ErrEnvelope)
	}
	e := Envelope{KID: string(field[0]), Alg: string(field[1]), Body: bytes.Clone(rest[4:])}
	if len(field[2]) > 0 {
		e.Enc = bytes.Clone(field[2])
	}
	if err := e.check(); err != nil {
		return Envelope{}, err
	}
	return e, nil
}

func (e *Envelope) check() error {
	a, ok := canonical(e.Alg, OpWrap)
	if !ok {
		return fmt.Errorf("%w: alg is not an algorithm that wraps", ErrEnvelope)
	}
	t := a.tracks[0]
	switch {
	case !validKID(e.KID):
		return fmt.Errorf("%w: kid names no key version", ErrEnvelope)
	case len(e.Enc) != t.encSize:
		return fmt.Errorf("%w: enc has %d bytes, not %d", ErrEnvelope, len(e.Enc), t.encSize)
	case !t.sealedSize(len(e.Body)):
		return fmt.Errorf("%w: body has %d bytes", ErrEnvelope, len(e.Body))
	}
	return nil
}

// EnvelopeAAD returns the associated data under which the data key of an
// envelope is sealed, with 0 to MaxAAD bytes of the caller's own, or
// [ErrEnvelope]. Different arguments never have the same, but for nil and empty
// aad:
//
//	"ron-kms/wrap/v1" 0x00
//	LP(tenant) LP(kid) LP(alg) LP(aad)
//
// tenant must be that of the caller, as authenticated, and never be taken from
// the envelope's kid: then what is sealed for one tenant opens for no other.
func EnvelopeAAD(tenant, kid, alg string, aad []byte) ([]byte, error) {
	_, wraps := canonical(alg, OpWrap)
	switch {
	case !api.ValidLabel(tenant):
		return nil, fmt.Errorf("%w: tenant is not a label", ErrEnvelope)
	case !validKID(kid):
		return nil, fmt.Errorf("%w: kid names no key version", ErrEnvelope)
	case !wraps:
		return nil, fmt.Errorf("%w: alg is not an algorithm that wraps", ErrEnvelope)
	case len(aad) > MaxAAD:
		return nil, fmt.Errorf("%w: associated data has %d bytes, more than %d", ErrEnvelope, len(aad), MaxAAD)
	}
	b := make([]byte, 0, len(wrapDomain)+8+len(tenant)+len(kid)+len(alg)+len(aad))
	b = append(b, wrapDomain...)
	b = appendLP(b, tenant)
	b = appendLP(b, kid)
	b = appendLP(b, alg)
	return appendLP(b, aad), nil
}
