package oracles

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"slices"

	"github.com/rustyonions/ron-kms/core/secret"
	"golang.org/x/crypto/chacha20poly1305"
)

// core/alg chooses salts and nonces itself and shows no subkey, so the vectors
// of symmetric algorithms meet the calls that it makes.

type aeadGroup struct {
	KeySize, IVSize, TagSize int // in bits
}

type aeadVectorText struct {
	vector
	Key, IV, AAD, Msg, CT, Tag hexBytes
}

// aeadVector opens what a vector has sealed and, if it is valid, seals it anew.
func aeadVector(newCipher func(key []byte) (open, seal cipher.AEAD, err error)) func(*secret.Arena, aeadGroup, aeadVectorText) error {
	return func(_ *secret.Arena, g aeadGroup, v aeadVectorText) error {
		if g.KeySize != 256 {
			return errSkip("a key size that no algorithm of ours has")
		}
		if g.IVSize != 96 && v.Result == "valid" {
			return errSkip("a nonce size that no algorithm of ours has")
		}
		open, seal, err := newCipher(v.Key)
		if err != nil {
			return err
		}
		if len(v.IV) != seal.NonceSize() {
			return v.verdict(false) // as such a blob does not parse
		}
		got, err := open.Open(nil, nil, slices.Concat(v.IV, v.CT, v.Tag), v.AAD)
		ok := err == nil && bytes.Equal(got, v.Msg)
		if ok {
			ok = bytes.Equal(seal.Seal(nil, v.IV, v.Msg, v.AAD), slices.Concat(v.CT, v.Tag))
		}
		return v.verdict(ok)
	}
}

func gcm(key []byte) (open, seal cipher.AEAD, err error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	if open, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, nil, err
	}
	seal, err = cipher.NewGCM(block)
	return open, seal, err
}

func chaCha(key []byte) (open, seal cipher.AEAD, err error) {
	c, err := chacha20poly1305.New(key)
	return nonceFirst{c}, c, err
}

// nonceFirst takes the nonce before the ciphertext.
type nonceFirst struct{ cipher.AEAD }

func (c nonceFirst) Open(dst, _, sealed, aad []byte) ([]byte, error) {
	return c.AEAD.Open(dst, sealed[:c.NonceSize()], sealed[c.NonceSize():], aad)
}

type hkdfVectorText struct {
	vector
	IKM, Salt, Info, OKM hexBytes
	Size                 int
}

func hkdfVector(_ *secret.Arena, _ noGroup, v hkdfVectorText) error {
	got, err := hkdf.Key(sha256.New, v.IKM, v.Salt, string(v.Info), v.Size)
	return v.verdict(err == nil && bytes.Equal(got, v.OKM))
}

type macGroup struct {
	TagSize int // in bits
}

type macVector struct {
	vector
	Key, Msg, Tag hexBytes
}

// hmacVector is crypto/hmac, which tokens and the store's records are made with.
func hmacVector(_ *secret.Arena, g macGroup, v macVector) error {
	h := hmac.New(sha256.New, v.Key)
	h.Write(v.Msg)
	return v.verdict(hmac.Equal(h.Sum(nil)[:g.TagSize/8], v.Tag))
}
