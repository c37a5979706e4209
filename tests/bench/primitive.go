package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/cloudflare/circl/sign/ed25519"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"golang.org/x/crypto/chacha20poly1305"
)

// What is signed and wrapped: as long as what the engine signs and wraps.
var (
	message     = make([]byte, 128)
	dataKey     = make([]byte, 32)
	signContext = []byte("ron-kms/v1")
)

var errPrimitive = errors.New("the primitive gave a wrong answer")

// A signature is an algorithm that signs, by the library that the engine uses,
// with keys on the heap that are expanded already.
type signature struct {
	name, alg        string
	signer, verifier func() (func() error, error)
}

var signatures = []signature{
	{"ed25519", "ed25519", ed25519Signer, ed25519Verifier},
	mldsa("ml-dsa-44", mldsa44.SignatureSize, mldsa44.GenerateKey, mldsa44.SignTo, mldsa44.Verify),
	mldsa("ml-dsa-65", mldsa65.SignatureSize, mldsa65.GenerateKey, mldsa65.SignTo, mldsa65.Verify),
	mldsa("ml-dsa-87", mldsa87.SignatureSize, mldsa87.GenerateKey, mldsa87.SignTo, mldsa87.Verify),
	hybrid(),
}

func ed25519Signer() (func() error, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return func() error {
		ed25519.Sign(private, message)
		return nil
	}, err
}

func ed25519Verifier() (func() error, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	sig := ed25519.Sign(private, message)
	return func() error { return want(ed25519.Verify(public, message, sig)) }, nil
}

func mldsa[PK, SK any](
	name string, size int,
	generate func(io.Reader) (*PK, *SK, error),
	sign func(key *SK, msg, ctx []byte, hedged bool, sig []byte) error,
	verify func(key *PK, msg, ctx, sig []byte) bool,
) signature {
	return signature{
		name: name, alg: name,
		signer: func() (func() error, error) {
			_, private, err := generate(rand.Reader)
			sig := make([]byte, size)
			return func() error { return sign(private, message, signContext, true, sig) }, err
		},
		verifier: func() (func() error, error) {
			public, private, err := generate(rand.Reader)
			if err != nil {
				return nil, err
			}
			sig := make([]byte, size)
			if err := sign(private, message, signContext, true, sig); err != nil {
				return nil, err
			}
			return func() error { return want(verify(public, message, signContext, sig)) }, nil
		},
	}
}

// hybrid is Ed25519 and ML-DSA-65, one after the other.
func hybrid() signature {
	pq := mldsa("", mldsa65.SignatureSize, mldsa65.GenerateKey, mldsa65.SignTo, mldsa65.Verify)
	both := func(a, b func() (func() error, error)) func() (func() error, error) {
		return func() (func() error, error) {
			first, err := a()
			if err != nil {
				return nil, err
			}
			second, err := b()
			return func() error { return errors.Join(first(), second()) }, err
		}
	}
	return signature{"hybrid", "ed25519+ml-dsa-65", both(ed25519Signer, pq.signer), both(ed25519Verifier, pq.verifier)}
}

// A wrapping is an algorithm that wraps, with keys that are parsed already.
type wrapping struct {
	name, alg          string
	wrapper, unwrapper func() (func() error, error)
}

var wrappings = []wrapping{
	kem("x25519", "x25519", hpke.DHKEM(ecdh.X25519())),
	kem("ml-kem-768", "ml-kem-768", hpke.MLKEM768()),
	kem("ml-kem-1024", "ml-kem-1024", hpke.MLKEM1024()),
	kem("x-wing", "x25519+ml-kem-768", hpke.MLKEM768X25519()),
	aead("aes-256-gcm", func(key []byte) (cipher.AEAD, error) {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	}),
	aead("chacha20-poly1305", chacha20poly1305.New),
}

// kem is HPKE in base mode (RFC 9180 §5.1.1).
func kem(name, alg string, k hpke.KEM) wrapping {
	seal := func(public hpke.PublicKey) (enc, ct []byte, err error) {
		enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), signContext)
		if err != nil {
			return nil, nil, err
		}
		ct, err = sender.Seal(nil, dataKey)
		return enc, ct, err
	}
	return wrapping{
		name: name, alg: alg,
		wrapper: func() (func() error, error) {
			private, err := k.GenerateKey()
			if err != nil {
				return nil, err
			}
			public := private.PublicKey()
			return func() error {
				_, _, err := seal(public)
				return err
			}, nil
		},
		unwrapper: func() (func() error, error) {
			private, err := k.GenerateKey()
			if err != nil {
				return nil, err
			}
			enc, ct, err := seal(private.PublicKey())
			return func() error {
				r, err := hpke.NewRecipient(enc, private, hpke.HKDFSHA256(), hpke.AES256GCM(), signContext)
				if err != nil {
					return err
				}
				_, err = r.Open(nil, ct)
				return err
			}, err
		},
	}
}

// aead is a cipher with a random nonce, under one key without subkeys.
func aead(name string, newCipher func(key []byte) (cipher.AEAD, error)) wrapping {
	nonce := make([]byte, 12)
	return wrapping{
		name: name, alg: name,
		wrapper: func() (func() error, error) {
			c, err := newCipher(make([]byte, 32))
			return func() error {
				rand.Read(nonce)
				c.Seal(nil, nonce, dataKey, nil)
				return nil
			}, err
		},
		unwrapper: func() (func() error, error) {
			c, err := newCipher(make([]byte, 32))
			if err != nil {
				return nil, err
			}
			fixed := make([]byte, 12)
			sealed := c.Seal(nil, fixed, dataKey, nil)
			return func() error {
				_, err := c.Open(nil, fixed, sealed, nil)
				return err
			}, nil
		},
	}
}

// derivation is HKDF, and the key pair that the bytes are the seed of.
func derivation() (func() error, error) {
	key, salt := make([]byte, 32), make([]byte, 32)
	return func() error {
		seed, err := hkdf.Key(sha256.New, key, salt, "ron-kms::bench::bench::context", 32)
		if err != nil {
			return err
		}
		ed25519.NewKeyFromSeed(seed)
		return nil
	}, nil
}

func want(ok bool) error {
	if !ok {
		return errPrimitive
	}
	return nil
}
