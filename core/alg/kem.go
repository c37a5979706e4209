package alg

import (
	"crypto/hpke"
	"fmt"

	"github.com/rustyonions/ron-kms/core/secret"
)

// kem is a primitive that opens what was sealed to its public key.
type kem interface {
	primitive
	// open runs inside secret.Do. Its error is ErrOpen unless the key cannot be
	// used at all.
	open(expanded, info, aad, enc, ct []byte) (plaintext []byte, err error)
	parse(public []byte) (hpke.PublicKey, error)
}

// hpkeKEM is HPKE in base mode with one message (RFC 9180 §5.1.1, §6.1), with
// HKDF-SHA256, AES-256-GCM and one of the KEMs
//
//	x25519             DHKEM(X25519, HKDF-SHA256), RFC 9180, 0x0020
//	ml-kem-768         ML-KEM-768 (FIPS 203), draft-ietf-hpke-pq, 0x0041
//	ml-kem-1024        ML-KEM-1024 (FIPS 203), draft-ietf-hpke-pq, 0x0042
//	x25519+ml-kem-768  MLKEM768-X25519, which is X-Wing, 0x647a
//
// An expanded key is the seed: the library's private keys hold pointers, so
// they are made from it each time. They and the shared secret are on the Go
// heap, for secret.Do to erase.
type hpkeKEM struct{ kem hpke.KEM }

// sealTag is how many bytes a ciphertext of HPKE is longer than its plaintext.
const sealTag = 16

func (hpkeKEM) expand(expanded, seed []byte) error {
	copy(expanded, seed)
	return nil
}

func (k hpkeKEM) public(public, expanded []byte) error {
	key, err := k.kem.NewPrivateKey(expanded)
	if err != nil {
		return err
	}
	copy(public, key.PublicKey().Bytes())
	return nil
}

// parse encapsulates to the key once. It is the only way to hear from the
// library that an X25519 key is of small order.
func (k hpkeKEM) parse(public []byte) (hpke.PublicKey, error) {
	key, err := k.kem.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	if _, _, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), nil); err != nil {
		return nil, err
	}
	return key, nil
}

func (k hpkeKEM) open(expanded, info, aad, enc, ct []byte) ([]byte, error) {
	key, err := k.kem.NewPrivateKey(expanded)
	if err != nil {
		return nil, err
	}
	r, err := hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), hpke.AES256GCM(), info)
	if err != nil {
		return nil, ErrOpen
	}
	plaintext, err := r.Open(aad, ct)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// SealTo encrypts 1 to [MaxDataKey] bytes to a public key of KindKEM and
// authenticates them together with info and aad, neither of which is stored. It
// returns the encapsulated key, EncSize bytes, and the ciphertext, 16 bytes
// longer than the plaintext. Whoever has the public key can seal: what opens
// says nothing of who sealed it. Two calls never return the same.
func (p Public) SealTo(info, aad, plaintext []byte) (enc, ct []byte, err error) {
	if p.recipient == nil {
		return nil, nil, fmt.Errorf("%w: nothing can be sealed to this key", ErrKind)
	}
	if n := len(plaintext); n < 1 || n > MaxDataKey {
		return nil, nil, ErrDataKey
	}
	secret.Do(func() {
		var s *hpke.Sender
		if enc, s, err = hpke.NewSender(p.recipient, hpke.HKDFSHA256(), hpke.AES256GCM(), info); err == nil {
			ct, err = s.Seal(aad, plaintext)
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("alg: seal to %s: %w", p.track.name, err)
	}
	return enc, ct, nil
}

// OpenFrom opens what [Public.SealTo] returned and lends the plaintext to use,
// which runs inside [secret.Do] and keeps to the rules of [secret.Bytes.Use];
// the plaintext is wiped when use returns. It returns [ErrOpen], and does not
// call use, whatever the reason that enc and ct are not authentic.
func (t *Track) OpenFrom(expanded *secret.Bytes, info, aad, enc, ct []byte, use func(plaintext []byte)) error {
	k, ok := t.primitive.(kem)
	if !ok {
		return fmt.Errorf("%w: %s is not a KEM", ErrKind, t.name)
	}
	if err := t.checkExpanded(expanded); err != nil {
		return fmt.Errorf("alg: open from %s: %w", t.name, err)
	}
	if len(enc) != t.encSize || !t.sealedSize(len(ct)) {
		return ErrOpen
	}
	return t.lendOpened(expanded, use, func(e []byte) ([]byte, error) { return k.open(e, info, aad, enc, ct) })
}

// sealedSize reports whether n bytes can be a sealed data key.
func (t *Track) sealedSize(n int) bool { return n > t.overhead && n <= t.overhead+MaxDataKey }

// lendOpened gives use what open makes with the expanded key, inside secret.Do.
func (t *Track) lendOpened(expanded *secret.Bytes, use func([]byte), open func(expanded []byte) ([]byte, error)) error {
	var openErr error
	err := expanded.Use(func(e []byte) {
		var plaintext []byte
		if plaintext, openErr = open(e); openErr == nil {
			defer secret.Wipe(plaintext)
			use(plaintext)
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("alg: open with %s: %w", t.name, err)
	case openErr != nil && openErr != ErrOpen:
		return fmt.Errorf("alg: open with %s: %w", t.name, openErr)
	}
	return openErr
}
