package oracles

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// What follows is written from RFC 9180, so that shared secrets of vectors can
// be followed through core/alg, which shows none. Errors are those of lengths
// that are constant here.

// hpkeIDs are the registered numbers of the KEMs.
var hpkeIDs = map[string]uint16{"x25519": 0x0020, "ml-kem-768": 0x0041, "ml-kem-1024": 0x0042, "x25519+ml-kem-768": 0x647a}

// sealHPKE is the first message of base mode (§5.1) under HKDF-SHA256 and
// AES-256-GCM.
func sealHPKE(name string, shared, info, aad, plaintext []byte) []byte {
	suite := binary.BigEndian.AppendUint16([]byte("HPKE"), hpkeIDs[name])
	suite = append(suite, 0, 1, 0, 2)
	context := slices.Concat([]byte{0}, labeledExtract(suite, nil, "psk_id_hash", nil), labeledExtract(suite, nil, "info_hash", info))
	secret := labeledExtract(suite, shared, "secret", nil)
	block := must(aes.NewCipher(labeledExpand(suite, secret, "key", context, 32)))
	nonce := labeledExpand(suite, secret, "base_nonce", context, 12)
	return must(cipher.NewGCM(block)).Seal(nil, nonce, plaintext, aad)
}

// dhkem is ExtractAndExpand of §4.1 for X25519.
func dhkem(dh, enc, public []byte) []byte {
	suite := []byte("KEM\x00\x20")
	return labeledExpand(suite, labeledExtract(suite, nil, "eae_prk", dh), "shared_secret", slices.Concat(enc, public), 32)
}

func labeledExtract(suite, salt []byte, label string, ikm []byte) []byte {
	return must(hkdf.Extract(sha256.New, slices.Concat([]byte("HPKE-v1"), suite, []byte(label), ikm), salt))
}

func labeledExpand(suite, prk []byte, label string, info []byte, n int) []byte {
	full := slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(n)), []byte("HPKE-v1"), suite, []byte(label), info)
	return must(hkdf.Expand(sha256.New, prk, string(full), n))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
