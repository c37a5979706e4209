package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// A sealed blob is
//
//	version  1 byte, 0x01
//	salt    16 bytes, random
//	nonce   12 bytes, random
//	ciphertext, as long as the plaintext, and its 16-byte tag
//
// under AES-256-GCM with the subkey HKDF-SHA256(key, salt, sealInfo) of 32
// bytes (RFC 5869, SP 800-38D). Each blob has a subkey of its own, so a nonce
// is never used twice with one AES key, whatever is restored, cloned or run
// side by side, up to the birthday bound of 28 random bytes. Both come from the
// generator of the key's arena, in one draw.
const (
	sealVersion = 0x01
	sealSalt    = 16
	sealNonce   = 12
	sealTag     = 16
	sealInfo    = "ron-kms/seal/v1"
	keySize     = 32

	// SealOverhead is how many bytes a sealed blob is longer than its plaintext.
	SealOverhead = 1 + sealSalt + sealNonce + sealTag
)

var (
	// ErrUnseal is returned for a blob that this key and this associated data
	// did not seal. It says no more than that.
	ErrUnseal = errors.New("secret: unseal: blob is not authentic")

	errKeySize = fmt.Errorf("secret: a key must have at least %d bytes", keySize)
)

// Seal encrypts plain under key and authenticates it together with aad, which
// is not stored. key has at least 32 bytes of full entropy. Two calls never
// return the same blob. It returns an error that wraps [ErrEntropy], and no blob,
// if there are no random bytes to be had.
func (key *Bytes) Seal(plain *Bytes, aad []byte) ([]byte, error) {
	k, ok := key.hold()
	if !ok {
		return nil, ErrDestroyed
	}
	defer key.s.drop()
	p, ok := plain.hold()
	if !ok {
		return nil, ErrDestroyed
	}
	defer plain.s.drop()
	if len(k) < keySize {
		return nil, errKeySize
	}
	// The blob is allocated out here: it is public, and what is allocated
	// inside Do is tracked and erased.
	out := make([]byte, 1+sealSalt+sealNonce, SealOverhead+len(p))
	out[0] = sealVersion
	if err := key.s.arena.rng().fill(out[1:]); err != nil {
		return nil, err
	}
	salt, nonce := out[1:1+sealSalt], out[1+sealSalt:]
	var err error
	Do(func() {
		var block cipher.Block
		if block, err = sealBlock(k, salt); err != nil {
			return
		}
		var aead cipher.AEAD
		if fips140.Enforced() {
			// This mode takes no nonce that its own module did not draw, so
			// let it write one over ours.
			out, nonce = out[:1+sealSalt], nil
			aead, err = cipher.NewGCMWithRandomNonce(block)
		} else {
			aead, err = cipher.NewGCM(block)
		}
		if err == nil {
			out = aead.Seal(out, nonce, p, aad)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("secret: seal: %w", err)
	}
	return out, nil
}

// Unseal opens what Seal returned into a slot of a. It returns [ErrUnseal]
// whatever the reason that sealed is not authentic, and [ErrArenaFull] or
// [ErrDestroyed] for reasons that have nothing to do with it.
func (key *Bytes) Unseal(a *Arena, sealed, aad []byte) (*Bytes, error) {
	k, ok := key.hold()
	if !ok {
		return nil, ErrDestroyed
	}
	defer key.s.drop()
	if len(k) < keySize {
		return nil, errKeySize
	}
	n := len(sealed) - SealOverhead
	if n < 1 || sealed[0] != sealVersion {
		return nil, ErrUnseal
	}
	salt, box := sealed[1:1+sealSalt], sealed[1+sealSalt:]
	b, err := a.New(n)
	if err != nil {
		return nil, err
	}
	var openErr error
	err = b.Use(func(p []byte) {
		var block cipher.Block
		if block, openErr = sealBlock(k, salt); openErr != nil {
			return
		}
		// Opening, this cipher takes the nonce from the front of the box,
		// whoever drew it.
		var aead cipher.AEAD
		if aead, openErr = cipher.NewGCMWithRandomNonce(block); openErr == nil {
			// p has room for exactly n bytes, so Open decrypts in place.
			_, openErr = aead.Open(p[:0], nil, box, aad)
		}
	})
	if err == nil && openErr != nil {
		err = ErrUnseal
	}
	if err != nil {
		b.Destroy()
		return nil, err
	}
	return b, nil
}

// sealBlock returns the block cipher of one blob. Call it inside Do: the subkey
// and the AES key schedule are on the Go heap, and nothing else erases the latter.
func sealBlock(key, salt []byte) (cipher.Block, error) {
	subkey, err := hkdf.Key(sha256.New, key, salt, sealInfo, keySize)
	if err != nil {
		return nil, err
	}
	defer Wipe(subkey)
	return aes.NewCipher(subkey)
}

// Derive returns n bytes, 1 to 8160, expanded from key for the use that info
// names: HKDF-Expand with SHA-256 (RFC 5869 §2.3). key has at least 32 bytes of
// full entropy. The same key and info give the same bytes.
func (key *Bytes) Derive(a *Arena, info string, n int) (*Bytes, error) {
	k, ok := key.hold()
	if !ok {
		return nil, ErrDestroyed
	}
	defer key.s.drop()
	if len(k) < keySize {
		return nil, errKeySize
	}
	b, err := a.New(n)
	if err != nil {
		return nil, err
	}
	var expandErr error
	err = b.Use(func(p []byte) {
		var out []byte
		if out, expandErr = hkdf.Expand(sha256.New, k, info, n); expandErr == nil {
			copy(p, out)
			Wipe(out)
		}
	})
	if err == nil && expandErr != nil {
		err = fmt.Errorf("secret: derive: %w", expandErr)
	}
	if err != nil {
		b.Destroy()
		return nil, err
	}
	return b, nil
}
