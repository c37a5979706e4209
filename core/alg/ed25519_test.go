package alg_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 8032 §7.1, but for the 1023-byte message. R-060
func TestRFC8032(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for _, v := range []struct{ name, seed, public, msg, sig string }{
		{"1", "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "", "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"},
		{"2", "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72", "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"},
		{"3", "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82", "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"},
		{"sha(abc)", "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42", "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf", "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f", "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"},
	} {
		k := newPair(t, a, track(t, "ed25519"), fill(t, a, unhex(t, v.seed)))
		if got := k.public.Bytes(); !bytes.Equal(got, unhex(t, v.public)) {
			t.Errorf("test %s: public key %x", v.name, got)
		}
		sig := k.sign(t, unhex(t, v.msg))
		if !bytes.Equal(sig, unhex(t, v.sig)) {
			t.Errorf("test %s: signature %x", v.name, sig)
		}
		if !k.public.Verify(unhex(t, v.msg), sig) {
			t.Errorf("test %s: does not verify", v.name)
		}
	}
}

// Against crypto/ed25519, both ways.
func TestEd25519Differential(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	for i := range 50 {
		seed := sha512.Sum512_256([]byte{byte(i)})
		std := ed25519.NewKeyFromSeed(seed[:])
		ours := newPair(t, a, track(t, "ed25519"), fill(t, a, seed[:]))
		msg := bytes.Repeat([]byte{byte(i)}, i*i)
		sig := ours.sign(t, msg)
		if !bytes.Equal(sig, ed25519.Sign(std, msg)) || !bytes.Equal(ours.public.Bytes(), std.Public().(ed25519.PublicKey)) {
			t.Fatalf("key %d: signature or public key differs", i)
		}
		bad := bytes.Clone(sig)
		bad[i] ^= 0x10
		for _, s := range [][]byte{sig, bad} {
			if ours.public.Verify(msg, s) != ed25519.Verify(std.Public().(ed25519.PublicKey), msg, s) {
				t.Errorf("key %d: verdicts differ", i)
			}
		}
	}
}

var order, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

func scalar(le []byte) *big.Int {
	be := bytes.Clone(le)
	slices.Reverse(be)
	return new(big.Int).SetBytes(be)
}

func encode(n *big.Int) []byte {
	b := n.FillBytes(make([]byte, 32))
	slices.Reverse(b)
	return b
}

// smallPoints are all canonical encodings of points of small order.
var smallPoints = []string{
	"0100000000000000000000000000000000000000000000000000000000000000",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0000000000000000000000000000000000000000000000000000000000000080",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}

// D-12: with a public key of small order anyone can make signatures, here with
// S = 0. crypto/ed25519 accepts them, which also shows that the point is one.
func TestEd25519SmallOrderKey(t *testing.T) {
	t.Parallel()
	for _, p := range smallPoints {
		public := unhex(t, p)
		forged := 0
		for i := range 64 {
			msg := []byte{byte(i)}
			for _, r := range smallPoints {
				if sig := append(unhex(t, r), make([]byte, 32)...); ed25519.Verify(public, msg, sig) {
					forged++
				}
			}
		}
		if forged == 0 {
			t.Errorf("%s: no forgery found, is it of small order?", p)
		}
		if _, err := track(t, "ed25519").ParsePublic(public); !errors.Is(err, alg.ErrPublicKey) {
			t.Errorf("%s: parsed: %v", p, err)
		}
	}
}

// D-12: encodings that are not canonical, of points that are otherwise fine or
// of small order.
func TestEd25519NonCanonicalKey(t *testing.T) {
	t.Parallel()
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	for y := range int64(19) {
		for _, sign := range []byte{0, 0x80} {
			raw := encode(new(big.Int).Add(p, big.NewInt(y)))
			raw[31] |= sign
			if _, err := track(t, "ed25519").ParsePublic(raw); !errors.Is(err, alg.ErrPublicKey) {
				t.Errorf("y = p+%d, sign %x: parsed", y, sign)
			}
		}
	}
	for _, raw := range []string{ // x = 0 with the sign bit
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		if _, err := track(t, "ed25519").ParsePublic(unhex(t, raw)); !errors.Is(err, alg.ErrPublicKey) {
			t.Errorf("%s: parsed", raw)
		}
	}
	// The largest canonical y but one is not refused for its size. It may be on
	// the curve or not.
	if _, err := track(t, "ed25519").ParsePublic(encode(new(big.Int).Sub(p, big.NewInt(2)))); err != nil {
		t.Error(err)
	}
}

// D-12: an honest key with R = identity, and S + L in place of S. The standard
// library accepts the first, as RFC 8032 does.
func TestEd25519StrictSignature(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	seed := bytes.Repeat([]byte{3}, 32)
	k := newPair(t, a, track(t, "ed25519"), fill(t, a, seed))
	msg := []byte("message")

	h := sha512.Sum512(seed)
	h[0] &= 248
	h[31] = h[31]&127 | 64
	r := unhex(t, smallPoints[0])
	hram := sha512.Sum512(slices.Concat(r, k.public.Bytes(), msg))
	s := new(big.Int).Mul(scalar(hram[:]), scalar(h[:32]))
	sig := append(r, encode(s.Mod(s, order))...)
	if !ed25519.Verify(k.public.Bytes(), msg, sig) {
		t.Fatal("the signature with R = identity was not made rightly")
	}
	if k.public.Verify(msg, sig) {
		t.Error("accepted R of small order")
	}

	sig = k.sign(t, msg)
	larger := slices.Concat(sig[:32], encode(new(big.Int).Add(scalar(sig[32:]), order)))
	if k.public.Verify(msg, larger) {
		t.Error("accepted S + L")
	}
}

// A public key that is no point of the curve verifies nothing.
func TestEd25519KeyOffCurve(t *testing.T) {
	t.Parallel()
	found := 0
	for y := uint64(2); y < 40; y++ {
		raw := binary.LittleEndian.AppendUint64(nil, y)
		raw = append(raw, make([]byte, 24)...)
		key, err := track(t, "ed25519").ParsePublic(raw)
		if err != nil {
			t.Fatal(err)
		}
		found++
		if key.Verify(nil, make([]byte, 64)) || key.Verify(nil, bytes.Repeat([]byte{1}, 64)) {
			t.Errorf("y = %d verifies", y)
		}
	}
	if found == 0 {
		t.Error("nothing was tried")
	}
}
