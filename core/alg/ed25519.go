package alg

import (
	"encoding/hex"
	"errors"

	"github.com/cloudflare/circl/sign/ed25519"
	"github.com/rustyonions/ron-kms/core/secret"
)

// pureEd25519 is Ed25519 of RFC 8032 §5.1. An expanded key is seed ‖ public
// key, 64 bytes, as circl takes it.
type pureEd25519 struct{}

func (pureEd25519) expand(expanded, seed []byte) error {
	key := ed25519.NewKeyFromSeed(seed) // on the heap
	copy(expanded, key)
	secret.Wipe(key)
	return nil
}

func (pureEd25519) public(public, expanded []byte) error {
	copy(public, expanded[ed25519.SeedSize:])
	return nil
}

// sign has no context, which pure Ed25519 knows none of, and no hedging:
// Ed25519 is deterministic.
func (pureEd25519) sign(sig, expanded, msg, _ []byte, _ bool) error {
	copy(sig, ed25519.Sign(ed25519.PrivateKey(expanded), msg))
	return nil
}

func (pureEd25519) parse(public []byte) (verifier, error) {
	key := ed25519Public(public)
	switch {
	case !key.canonical():
		return nil, errors.New("encoding is not canonical")
	case smallOrder(key[:]):
		return nil, errors.New("point has small order")
	}
	return key, nil
}

type ed25519Public [ed25519.PublicKeySize]byte

// verify relies on circl for S < L, for a canonical A, and, because circl
// encodes the R it computed and compares bytes, for a canonical R. circl, like
// crypto/ed25519, accepts points of small order. With those, one signature can
// be valid for many messages.
func (p ed25519Public) verify(msg, _, sig []byte) bool {
	return !smallOrder(sig[:32]) && ed25519.Verify(p[:], msg, sig)
}

// canonical reports whether the y coordinate is below 2^255-19. The other
// non-canonical form, x = 0 with the sign bit, has small order.
func (p ed25519Public) canonical() bool {
	if p[31]&0x7f != 0x7f {
		return true
	}
	for _, b := range p[1:31] {
		if b != 0xff {
			return true
		}
	}
	return p[0] < 0xed
}

// smallOrderY has the y coordinates of the points whose order divides 8, in the
// encoding of RFC 8032 §5.1.2 without the sign bit.
var smallOrderY = func() (ys [][32]byte) {
	for _, s := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000", // order 1
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // order 2
		"0000000000000000000000000000000000000000000000000000000000000000", // order 4
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			panic(err) // a constant above is mistyped
		}
		ys = append(ys, [32]byte(b))
	}
	return ys
}()

// smallOrder reports whether the canonical encoding point is of small order.
func smallOrder(point []byte) bool {
	y := [32]byte(point)
	y[31] &= 0x7f
	for i := range smallOrderY {
		if y == smallOrderY[i] {
			return true
		}
	}
	return false
}
