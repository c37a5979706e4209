package alg

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/rustyonions/ron-kms/core/secret"
)

const (
	// FieldKeyBytes is the size of the key of [SealField].
	FieldKeyBytes = chacha20poly1305.KeySize

	// FieldOverhead is how many bytes a sealed field is longer than its plaintext.
	FieldOverhead = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// SealField encrypts plaintext, a few bytes of a record, and authenticates it
// together with aad, which is not stored: XChaCha20-Poly1305
// (draft-irtf-cfrg-xchacha-03 §2.3) under a random key of FieldKeyBytes. It
// returns the nonce, 24 bytes of the system's random source, then the
// ciphertext and its tag. So many random bytes do not repeat, however many
// records one key seals and on however many copies of a store.
func SealField(key *secret.Bytes, aad, plaintext []byte) ([]byte, error) {
	sealed := make([]byte, chacha20poly1305.NonceSizeX, FieldOverhead+len(plaintext))
	rand.Read(sealed) // never fails (crypto/rand)
	err := withFieldCipher(key, func(c cipher.AEAD) {
		sealed = c.Seal(sealed, sealed[:chacha20poly1305.NonceSizeX], plaintext, aad)
	})
	if err != nil {
		return nil, fmt.Errorf("alg: seal field: %w", err)
	}
	return sealed, nil
}

// OpenField opens what [SealField] returned. It returns [ErrOpen] whatever the
// reason that sealed is not authentic.
func OpenField(key *secret.Bytes, aad, sealed []byte) ([]byte, error) {
	if len(sealed) < FieldOverhead {
		return nil, ErrOpen
	}
	plaintext := make([]byte, 0, len(sealed)-FieldOverhead)
	var opened error
	err := withFieldCipher(key, func(c cipher.AEAD) {
		n := chacha20poly1305.NonceSizeX
		plaintext, opened = c.Open(plaintext, sealed[:n], sealed[n:], aad)
	})
	if err != nil {
		return nil, fmt.Errorf("alg: open field: %w", err)
	}
	if opened != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// withFieldCipher lends the cipher of key. What do appends to is allocated
// outside: what is allocated inside of secret.Do is erased.
func withFieldCipher(key *secret.Bytes, do func(cipher.AEAD)) error {
	var inner error
	err := key.Use(func(k []byte) {
		var c cipher.AEAD
		if c, inner = chacha20poly1305.NewX(k); inner == nil {
			do(c)
		}
	})
	return firstError(err, inner)
}
