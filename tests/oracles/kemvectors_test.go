package oracles

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"errors"
	"fmt"
	"slices"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// mlkemLib is one parameter set of ML-KEM in crypto/mlkem, which crypto/hpke
// and so core/alg is made of.
type mlkemLib struct {
	name        string
	decapsulate func(seed, ct []byte) (shared []byte, err error)
	encapsulate func(public, m []byte) (shared, ct []byte, err error)
}

var (
	mlkem768Lib = mlkemLib{
		name: "ml-kem-768",
		decapsulate: func(seed, ct []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey768(seed)
			if err != nil {
				return nil, err
			}
			return key.Decapsulate(ct)
		},
		encapsulate: func(public, m []byte) ([]byte, []byte, error) {
			key, err := mlkem.NewEncapsulationKey768(public)
			if err != nil {
				return nil, nil, err
			}
			return mlkemtest.Encapsulate768(key, m)
		},
	}
	mlkem1024Lib = mlkemLib{
		name: "ml-kem-1024",
		decapsulate: func(seed, ct []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey1024(seed)
			if err != nil {
				return nil, err
			}
			return key.Decapsulate(ct)
		},
		encapsulate: func(public, m []byte) ([]byte, []byte, error) {
			key, err := mlkem.NewEncapsulationKey1024(public)
			if err != nil {
				return nil, nil, err
			}
			return mlkemtest.Encapsulate1024(key, m)
		},
	}
)

type kemVector struct {
	vector
	Seed, EK, M, C, K hexBytes
}

type noGroup struct{}

// publicOf is the public key that core/alg makes of a seed.
func publicOf(a *secret.Arena, name string, seed []byte) ([]byte, error) {
	tr, _ := alg.LookupTrack(name)
	private, err := expand(a, tr, seed)
	if err != nil {
		return nil, err
	}
	defer private.Destroy()
	return tr.Public(private)
}

var plaintext = []byte("a data key of thirty-two bytes, ")

// opens reports whether core/alg opens what was sealed by hand with a shared
// secret that a vector says.
func opens(a *secret.Arena, name string, seed, enc, shared []byte) error {
	tr, _ := alg.LookupTrack(name)
	private, err := expand(a, tr, seed)
	if err != nil {
		return err
	}
	defer private.Destroy()
	info, aad := []byte("info"), []byte("aad")
	ct := sealHPKE(name, shared, info, aad, plaintext)
	same := false
	err = tr.OpenFrom(private, info, aad, enc, ct, func(p []byte) { same = bytes.Equal(p, plaintext) })
	if err == nil && !same {
		return errors.New("opened something else")
	}
	return err
}

// mlkemDecapsulate lets core/alg open what is sealed with the shared secret.
func mlkemDecapsulate(lib mlkemLib) func(*secret.Arena, noGroup, kemVector) error {
	return func(a *secret.Arena, _ noGroup, v kemVector) error {
		shared, err := lib.decapsulate(v.Seed, v.C)
		if err != nil {
			if opens(a, lib.name, v.Seed, v.C, make([]byte, 32)) == nil {
				return errors.New("core/alg opens it")
			}
			return v.verdict(false)
		}
		if err := opens(a, lib.name, v.Seed, v.C, v.K); err != nil {
			return fmt.Errorf("core/alg: %v", err)
		}
		wrong := slices.Clone(v.K)
		wrong[0] ^= 1
		if err := opens(a, lib.name, v.Seed, v.C, wrong); !errors.Is(err, alg.ErrOpen) {
			return fmt.Errorf("core/alg opens with another secret: %v", err)
		}
		public, err := publicOf(a, lib.name, v.Seed)
		return v.verdict(err == nil && bytes.Equal(shared, v.K) && bytes.Equal(public, v.EK))
	}
}

func mlkemEncapsulate(lib mlkemLib) func(*secret.Arena, noGroup, kemVector) error {
	return func(_ *secret.Arena, _ noGroup, v kemVector) error {
		tr, _ := alg.LookupTrack(lib.name)
		_, parseErr := tr.ParsePublic(v.EK)
		shared, ct, err := lib.encapsulate(v.EK, v.M)
		if (err == nil) != (parseErr == nil) {
			return fmt.Errorf("core/alg: %v, crypto/mlkem: %v", parseErr, err)
		}
		return v.verdict(err == nil && bytes.Equal(shared, v.K) && bytes.Equal(ct, v.C))
	}
}

func mlkemKeyGen(lib mlkemLib) func(*secret.Arena, noGroup, kemVector) error {
	return func(a *secret.Arena, _ noGroup, v kemVector) error {
		public, err := publicOf(a, lib.name, v.Seed)
		return v.verdict(err == nil && bytes.Equal(public, v.EK))
	}
}

func mlkemExpanded(*secret.Arena, noGroup, kemVector) error {
	return errSkip("takes an expanded private key, and crypto/mlkem takes seeds alone")
}

type xdhVector struct {
	vector
	Public, Private, Shared hexBytes
}

// x25519Shared demands what RFC 7748 §6.1 leaves open: a shared secret of zero
// is refused. Everything else Wycheproof calls acceptable has its one answer.
func x25519Shared(a *secret.Arena, _ noGroup, v xdhVector) error {
	private, err := ecdh.X25519().NewPrivateKey(v.Private)
	if err != nil {
		return err
	}
	public, err := ecdh.X25519().NewPublicKey(v.Public)
	if err != nil {
		return err
	}
	own, err := publicOf(a, "x25519", v.Private)
	if err != nil || !bytes.Equal(own, private.PublicKey().Bytes()) {
		return fmt.Errorf("core/alg has another public key: %v", err)
	}
	tr, _ := alg.LookupTrack("x25519")
	_, parseErr := tr.ParsePublic(v.Public)
	shared, err := private.ECDH(public)
	if slices.Contains(v.Flags, "ZeroSharedSecret") {
		openErr := opens(a, "x25519", v.Private, v.Public, dhkem(v.Shared, v.Public, own))
		if err == nil || !errors.Is(parseErr, alg.ErrPublicKey) || !errors.Is(openErr, alg.ErrOpen) {
			return fmt.Errorf("zero is not refused: ecdh %v, parse %v, open %v", err, parseErr, openErr)
		}
		return nil
	}
	if err != nil || parseErr != nil || !bytes.Equal(shared, v.Shared) {
		return fmt.Errorf("got %x: ecdh %v, parse %v", shared, err, parseErr)
	}
	return opens(a, "x25519", v.Private, v.Public, dhkem(v.Shared, v.Public, own))
}
