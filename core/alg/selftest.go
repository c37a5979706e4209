package alg

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// selfTestMessage is what is signed, sealed and derived in the self-test.
var selfTestMessage = []byte("ron-kms/self-test")

// answer is what a track must give for the seed 00 01 02 ….
type answer struct {
	track *Track
	// digest is the SHA-256 of the public key, and of the deterministic
	// signature of selfTestMessage after it, or of the 64 bytes derived with
	// selfTestMessage for info. Of an AEAD key there is nothing to digest.
	digest string
	// sealed, in base64, was once made of selfTestMessage: enc and ciphertext,
	// or a blob. info and associated data are selfTestMessage too.
	sealed string
}

// SelfTest has every track give an answer known beforehand, and refuse the same
// with a bit changed. It takes a few milliseconds. Call it once, before the
// first key is used, and use none if it fails: then this build or this machine
// computes wrongly.
func SelfTest() error { return selfTest(answers) }

func selfTest(answers []answer) error {
	if err := rfc5869Case1(); err != nil {
		return fmt.Errorf("alg: self-test: hkdf: %w", err)
	}
	tested := make(map[*Track]bool, len(answers))
	for _, want := range answers {
		if err := want.check(); err != nil {
			return fmt.Errorf("alg: self-test: %s: %w", want.track.name, err)
		}
		tested[want.track] = true
	}
	for _, a := range algs {
		for _, t := range a.tracks {
			if !tested[t] {
				return fmt.Errorf("alg: self-test: %s: no answer is known", t.name)
			}
		}
	}
	return nil
}

func (want *answer) check() error {
	t := want.track
	seed := make([]byte, t.seedSize)
	for i := range seed {
		seed[i] = byte(i)
	}
	expanded, public := make([]byte, t.expandedSize), make([]byte, t.publicSize)
	if err := firstError(t.primitive.expand(expanded, seed), t.primitive.public(public, expanded)); err != nil {
		return err
	}
	sealed, err := base64.StdEncoding.DecodeString(want.sealed)
	if err != nil {
		return err
	}
	switch p := t.primitive.(type) {
	case signer:
		return want.checkSigner(p, expanded, public)
	case kem:
		if !want.isDigest(public) {
			return errors.New("wrong public key")
		}
		if len(sealed) <= t.encSize {
			return errors.New("no ciphertext")
		}
		return checkOpen(sealed, func(sealed []byte) ([]byte, error) {
			return p.open(expanded, selfTestMessage, selfTestMessage, sealed[:t.encSize], sealed[t.encSize:])
		})
	case aead:
		return checkOpen(sealed, func(sealed []byte) ([]byte, error) {
			return t.open(p, expanded, selfTestMessage, sealed)
		})
	case hkdfSHA256:
		out, err := p.derive(expanded, deriveSalt[:], string(selfTestMessage), 64)
		if err != nil {
			return err
		}
		if !want.isDigest(out) {
			return errors.New("wrong bytes derived")
		}
		return nil
	}
	return errors.New("track of an unknown kind")
}

func (want *answer) checkSigner(p signer, expanded, public []byte) error {
	ctx, _ := SchemeV1.context(nil)
	sig := make([]byte, want.track.signatureSize)
	if err := p.sign(sig, expanded, selfTestMessage, ctx, false); err != nil {
		return err
	}
	if !want.isDigest(public, sig) {
		return errors.New("wrong public key or signature")
	}
	key, err := p.parse(public)
	if err != nil {
		return err
	}
	if !key.verify(selfTestMessage, ctx, sig) {
		return errors.New("a signature does not verify")
	}
	sig[0] ^= 1
	if key.verify(selfTestMessage, ctx, sig) {
		return errors.New("a changed signature verifies")
	}
	return nil
}

// checkOpen opens sealed, and sealed with one bit changed in its last byte.
func checkOpen(sealed []byte, open func(sealed []byte) ([]byte, error)) error {
	plaintext, err := open(sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(plaintext, selfTestMessage) {
		return errors.New("wrong plaintext")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := open(sealed); err == nil {
		return errors.New("a changed ciphertext opens")
	}
	return nil
}

func (want *answer) isDigest(parts ...[]byte) bool {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)) == want.digest
}

// rfc5869Case1 is the first test case of RFC 5869, appendix A.1. All uses of
// HKDF here are one function of the library.
func rfc5869Case1() error {
	key := bytes.Repeat([]byte{0x0b}, 22)
	salt := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	const info = "\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9"
	out, err := hkdfSHA256{}.derive(key, salt, info, 42)
	if err != nil {
		return err
	}
	const want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
	if hex.EncodeToString(out) != want {
		return errors.New("wrong bytes derived")
	}
	return nil
}
