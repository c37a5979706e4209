package oracles

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

type ed25519Group struct {
	PublicKey struct{ PK hexBytes }
}

type signatureVector struct {
	vector
	Msg hexBytes
	Ctx hexBytes // ML-DSA, mostly absent
	Sig hexBytes
}

// ed25519Verify has no exceptions: none of Wycheproof's valid signatures is
// refused by the strict set of core/alg, whose corners TestSpeccheck looks into.
func ed25519Verify(_ *secret.Arena, g ed25519Group, v signatureVector) error {
	return v.verdict(algVerify("ed25519", g.PublicKey.PK, v.Msg, v.Sig))
}

// algVerify is what core/alg says to a signature without context.
func algVerify(name string, public, msg, sig []byte) bool {
	tr, ok := alg.LookupTrack(name)
	if !ok {
		return false
	}
	key, err := tr.ParsePublic(public)
	return err == nil && key.VerifyScheme(alg.SchemeRaw, msg, sig)
}

// mldsaLib is one parameter set of ML-DSA in circl, called as core/alg calls
// it. Only these calls take any context, and sign without hedging.
type mldsaLib struct {
	name       string
	verify     func(public, msg, ctx, sig []byte) bool
	signSeed   func(seed, msg, ctx []byte) ([]byte, error)
	signPacked func(private, msg, ctx []byte) ([]byte, error)
}

var (
	mldsa44Lib = newMLDSALib("ml-dsa-44", mldsa44.SignatureSize, mldsa44.NewKeyFromSeed, mldsa44.SignTo, mldsa44.Verify)
	mldsa65Lib = newMLDSALib("ml-dsa-65", mldsa65.SignatureSize, mldsa65.NewKeyFromSeed, mldsa65.SignTo, mldsa65.Verify)
	mldsa87Lib = newMLDSALib("ml-dsa-87", mldsa87.SignatureSize, mldsa87.NewKeyFromSeed, mldsa87.SignTo, mldsa87.Verify)
)

type unmarshaler[T any] interface {
	*T
	encoding.BinaryUnmarshaler
}

func newMLDSALib[PK, SK any, P unmarshaler[PK], S unmarshaler[SK]](
	name string, size int,
	newKey func(*[32]byte) (*PK, *SK),
	signTo func(*SK, []byte, []byte, bool, []byte) error,
	verify func(*PK, []byte, []byte, []byte) bool,
) mldsaLib {
	sign := func(key *SK, msg, ctx []byte) ([]byte, error) {
		sig := make([]byte, size)
		return sig, signTo(key, msg, ctx, false, sig)
	}
	return mldsaLib{
		name: name,
		verify: func(public, msg, ctx, sig []byte) bool {
			var key PK
			return P(&key).UnmarshalBinary(public) == nil && verify(&key, msg, ctx, sig)
		},
		signSeed: func(seed, msg, ctx []byte) ([]byte, error) {
			if len(seed) != 32 {
				return nil, errors.New("seed has another length")
			}
			_, key := newKey((*[32]byte)(seed))
			return sign(key, msg, ctx)
		},
		signPacked: func(private, msg, ctx []byte) ([]byte, error) {
			var key SK
			if err := S(&key).UnmarshalBinary(private); err != nil {
				return nil, err
			}
			return sign(&key, msg, ctx)
		},
	}
}

type mldsaGroup struct {
	PublicKey   hexBytes
	PrivateSeed hexBytes
	PrivateKey  hexBytes
}

// mldsaVerify verifies what has no context through core/alg as well.
func mldsaVerify(lib mldsaLib) func(*secret.Arena, mldsaGroup, signatureVector) error {
	return func(_ *secret.Arena, g mldsaGroup, v signatureVector) error {
		ok := lib.verify(g.PublicKey, v.Msg, v.Ctx, v.Sig)
		if len(v.Ctx) == 0 && algVerify(lib.name, g.PublicKey, v.Msg, v.Sig) != ok {
			return errors.New("core/alg and circl disagree")
		}
		return v.verdict(ok)
	}
}

type signVector struct {
	vector
	Msg *hexBytes // absent where only mu is given
	Ctx hexBytes
	Rnd hexBytes
	Sig hexBytes
}

// unreachable says why a vector cannot be run.
func (v signVector) unreachable() error {
	switch {
	case len(v.Rnd) > 0:
		return errSkip("the randomness cannot be chosen: circl draws it")
	case v.Msg == nil:
		return errSkip("signs a given mu, which circl has no call for")
	}
	return nil
}

// mldsaSignSeed makes the key in core/alg, and the signature with circl, as
// core/alg always hedges.
func mldsaSignSeed(lib mldsaLib) func(*secret.Arena, mldsaGroup, signVector) error {
	return func(a *secret.Arena, g mldsaGroup, v signVector) error {
		if err := v.unreachable(); err != nil {
			return err
		}
		sig, err := lib.signSeed(g.PrivateSeed, *v.Msg, v.Ctx)
		ok := err == nil && bytes.Equal(sig, v.Sig)
		tr, _ := alg.LookupTrack(lib.name)
		private, err := expand(a, tr, g.PrivateSeed)
		if err != nil {
			if v.Result == "valid" {
				return err
			}
			return v.verdict(ok)
		}
		defer private.Destroy()
		public, err := tr.Public(private)
		if err != nil || !bytes.Equal(public, g.PublicKey) {
			return fmt.Errorf("core/alg has another public key: %v", err)
		}
		if len(v.Ctx) == 0 {
			hedged, err := tr.SignScheme(private, alg.SchemeRaw, *v.Msg)
			if err != nil || bytes.Equal(hedged, v.Sig) || !lib.verify(public, *v.Msg, nil, hedged) {
				return fmt.Errorf("the signature of core/alg is not valid or not hedged: %v", err)
			}
		}
		return v.verdict(ok)
	}
}

// mldsaSignPacked signs with expanded keys, which core/alg never takes.
func mldsaSignPacked(lib mldsaLib) func(*secret.Arena, mldsaGroup, signVector) error {
	return func(_ *secret.Arena, g mldsaGroup, v signVector) error {
		if err := v.unreachable(); err != nil {
			return err
		}
		sig, err := lib.signPacked(g.PrivateKey, *v.Msg, v.Ctx)
		return v.verdict(err == nil && bytes.Equal(sig, v.Sig))
	}
}
