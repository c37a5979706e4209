package alg

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/core/secret"
	"golang.org/x/crypto/chacha20poly1305"
)

// aead is a primitive that seals and opens with one secret key.
type aead interface {
	primitive
	// cipher returns the cipher of one message. It takes no nonce, but draws 12
	// random bytes and writes them before the ciphertext. It runs inside
	// secret.Do.
	cipher(subkey []byte) (cipher.AEAD, error)
}

const (
	aeadSalt  = 16
	aeadNonce = 12
	aeadTag   = 16
	aeadInfo  = "ron-kms/aead/v1\x00" // followed by the track's name

	// aeadOverhead is how many bytes a sealed blob is longer than its plaintext.
	aeadOverhead = aeadSalt + aeadNonce + aeadTag
)

// aesGCM is AES-256-GCM (SP 800-38D).
type aesGCM struct{ symmetric }

func (aesGCM) cipher(subkey []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(subkey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// chaCha20Poly1305 is the AEAD of RFC 8439 §2.8.
type chaCha20Poly1305 struct{ symmetric }

func (chaCha20Poly1305) cipher(subkey []byte) (cipher.AEAD, error) {
	c, err := chacha20poly1305.New(subkey)
	if err != nil {
		return nil, err
	}
	return randomNonce{c}, nil
}

// randomNonce is an AEAD in the manner of [cipher.NewGCMWithRandomNonce].
type randomNonce struct{ inner cipher.AEAD }

func (randomNonce) NonceSize() int { return 0 }
func (randomNonce) Overhead() int  { return aeadNonce + aeadTag }

func (c randomNonce) Seal(dst, _, plaintext, aad []byte) []byte {
	var nonce [aeadNonce]byte
	rand.Read(nonce[:])
	return c.inner.Seal(append(dst, nonce[:]...), nonce[:], plaintext, aad)
}

func (c randomNonce) Open(dst, _, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < aeadNonce {
		return nil, errors.New("too short")
	}
	return c.inner.Open(dst, sealed[:aeadNonce], sealed[aeadNonce:], aad)
}

// messageCipher returns the cipher of the message with that salt. Call it
// inside secret.Do: the subkey and its schedule are on the Go heap.
func (t *Track) messageCipher(a aead, key, salt []byte) (cipher.AEAD, error) {
	subkey, err := hkdf.Key(sha256.New, key, salt, aeadInfo+t.name, symmetricSize)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(subkey)
	return a.cipher(subkey)
}

// SealWith encrypts 1 to [MaxDataKey] bytes with an expanded key of KindAEAD
// and authenticates them together with aad, which is not stored:
//
//	salt        16 bytes, from the arena's generator
//	nonce       12 bytes, from the system's random source
//	ciphertext  as long as the plaintext
//	tag         16 bytes
//
// under the subkey HKDF-SHA256(key, salt, "ron-kms/aead/v1" 0x00 name) of 32
// bytes, name being the track's (RFC 5869). The caller chooses neither salt nor
// nonce. As each message has a subkey of its own, no count needs to be kept: a
// pair of subkey and nonce is used twice only if 28 random bytes repeat,
// whatever is restarted, restored from a copy or run side by side.
func (t *Track) SealWith(expanded *secret.Bytes, aad, plaintext []byte) ([]byte, error) {
	a, ok := t.primitive.(aead)
	if !ok {
		return nil, fmt.Errorf("%w: %s is not an AEAD", ErrKind, t.name)
	}
	if n := len(plaintext); n < 1 || n > MaxDataKey {
		return nil, ErrDataKey
	}
	if err := t.checkExpanded(expanded); err != nil {
		return nil, fmt.Errorf("alg: seal with %s: %w", t.name, err)
	}
	// The blob is public, so it is made outside of secret.Do. Append below
	// never moves it.
	blob := make([]byte, aeadSalt, aeadOverhead+len(plaintext))
	if err := expanded.Fill(blob); err != nil {
		return nil, fmt.Errorf("alg: seal with %s: %w", t.name, err)
	}
	var sealErr error
	err := expanded.Use(func(key []byte) {
		var c cipher.AEAD
		if c, sealErr = t.messageCipher(a, key, blob); sealErr == nil {
			blob = c.Seal(blob, nil, plaintext, aad)
		}
	})
	if err := firstError(err, sealErr); err != nil {
		return nil, fmt.Errorf("alg: seal with %s: %w", t.name, err)
	}
	return blob, nil
}

// OpenWith opens what [Track.SealWith] returned and lends the plaintext to use,
// as [Track.OpenFrom] does. It returns [ErrOpen], and does not call use,
// whatever the reason that blob is not authentic.
func (t *Track) OpenWith(expanded *secret.Bytes, aad, blob []byte, use func(plaintext []byte)) error {
	a, ok := t.primitive.(aead)
	if !ok {
		return fmt.Errorf("%w: %s is not an AEAD", ErrKind, t.name)
	}
	if err := t.checkExpanded(expanded); err != nil {
		return fmt.Errorf("alg: open with %s: %w", t.name, err)
	}
	if !t.sealedSize(len(blob)) {
		return ErrOpen
	}
	return t.lendOpened(expanded, use, func(key []byte) ([]byte, error) { return t.open(a, key, aad, blob) })
}

// open opens a blob longer than aeadOverhead. It runs inside secret.Do.
func (t *Track) open(a aead, key, aad, blob []byte) ([]byte, error) {
	c, err := t.messageCipher(a, key, blob[:aeadSalt])
	if err != nil {
		return nil, err
	}
	plaintext, err := c.Open(nil, nil, blob[aeadSalt:], aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}
