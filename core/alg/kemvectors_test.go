package alg_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// RFC 7748 §6.1 for public keys, through our slots, and for the shared secret;
// and the iterated vectors of §5.2. R-251
func TestRFC7748(t *testing.T) {
	t.Parallel()
	const shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
	a := newArena(t)
	pairs := [][2]string{
		{"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a", "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"},
		{"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb", "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"},
	}
	for i, p := range pairs {
		k := newPair(t, a, track(t, "x25519"), fill(t, a, unhex(t, p[0])))
		if got := hex.EncodeToString(k.public.Bytes()); got != p[1] {
			t.Errorf("public key %s", got)
		}
		if got := diffieHellman(t, unhex(t, p[0]), unhex(t, pairs[1-i][1])); hex.EncodeToString(got) != shared {
			t.Errorf("shared secret %x", got)
		}
	}
	k := append([]byte{9}, make([]byte, 31)...)
	u := bytes.Clone(k)
	for i := range 1000 {
		k, u = diffieHellman(t, k, u), k
		want := map[int]string{
			0:   "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
			999: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
		}[i]
		if want != "" && hex.EncodeToString(k) != want {
			t.Errorf("iteration %d: %x", i+1, k)
		}
	}
}

func diffieHellman(t *testing.T, private, public []byte) []byte {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := k.ECDH(p)
	if err != nil {
		t.Fatal(err)
	}
	return shared
}

type hpkeVector struct {
	Mode         int      `json:"mode"`
	KEM          uint16   `json:"kem_id"`
	KDF          uint16   `json:"kdf_id"`
	AEAD         uint16   `json:"aead_id"`
	Info         hexBytes `json:"info"`
	Private      hexBytes `json:"skRm"`
	Public       hexBytes `json:"pkRm"`
	Enc          hexBytes `json:"enc"`
	SharedSecret hexBytes `json:"shared_secret"`
	// Only the first is of interest: the next ones are of a context in use.
	Encryptions []json.RawMessage `json:"encryptions"`
}

type hpkeEncryption struct {
	AAD       hexBytes `json:"aad"`
	Plaintext hexBytes `json:"pt"`
	CT        hexBytes `json:"ct"`
}

// The first message of each vector of RFC 9180 for DHKEM(X25519), and of the
// draft for the post-quantum KEMs. Where the suite is ours it is opened by our
// track, otherwise by the library with the vector's suite; in both cases the
// public key is that of our track, and the other implementation finds the same
// shared secret.
func TestHPKEVectors(t *testing.T) {
	t.Parallel()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src/crypto/hpke/testdata/hpke-pq.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors, draft []hpkeVector
	acvp(t, "hpke/testdata", "vectors_rfc9180_5f503c5", &vectors)
	if err := json.Unmarshal(raw, &draft); err != nil {
		t.Fatal(err)
	}
	names := map[uint16]string{}
	for name, id := range hpkeIDs {
		names[id] = name
	}
	a, opened, ours := newArena(t), map[string]int{}, 0
	for _, v := range append(vectors, draft...) {
		name, known := names[v.KEM]
		// The library has base mode, HKDF and SHAKE, but not TurboSHAKE.
		if !known || v.Mode != 0 || v.KDF == 0x12 || v.KDF == 0x13 || len(v.Encryptions) == 0 {
			continue
		}
		k := newPair(t, a, track(t, name), fill(t, a, v.Private))
		if !bytes.Equal(k.public.Bytes(), v.Public) {
			t.Errorf("%s: public key differs", name)
		}
		if got := circlDecapsulate(t, name, v.Private, v.Enc); !bytes.Equal(got, v.SharedSecret) {
			t.Errorf("%s: the other implementation has another shared secret", name)
		}
		var first hpkeEncryption
		if err := json.Unmarshal(v.Encryptions[0], &first); err != nil {
			t.Fatal(err)
		}
		var got []byte
		var err error
		if v.KDF == 1 && v.AEAD == 2 {
			ours++
			got, err = k.openFrom(t, v.Info, first.AAD, v.Enc, first.CT)
		} else {
			got, err = libraryOpen(v, first.AAD, first.CT)
		}
		if err != nil || !bytes.Equal(got, first.Plaintext) {
			t.Errorf("%s, KDF %d, AEAD %d: %v", name, v.KDF, v.AEAD, err)
		}
		opened[name]++
	}
	t.Log(opened, "of them with our suite:", ours)
	for name := range hpkeIDs {
		if opened[name] == 0 {
			t.Errorf("no vector for %s", name)
		}
	}
	if ours == 0 {
		t.Error("no vector with our suite")
	}
}

func libraryOpen(v hpkeVector, aad, ct []byte) ([]byte, error) {
	kem, err := hpke.NewKEM(v.KEM)
	if err != nil {
		return nil, err
	}
	kdf, err := hpke.NewKDF(v.KDF)
	if err != nil {
		return nil, err
	}
	aead, err := hpke.NewAEAD(v.AEAD)
	if err != nil {
		return nil, err
	}
	private, err := kem.NewPrivateKey(v.Private)
	if err != nil {
		return nil, err
	}
	r, err := hpke.NewRecipient(v.Enc, private, kdf, aead, v.Info)
	if err != nil {
		return nil, err
	}
	return r.Open(aad, ct)
}

type kemGroups struct {
	TestGroups []struct {
		TgID         int
		ParameterSet string
		Function     string
		DK           hexBytes
		Tests        []kemTest
	}
}

type kemTest struct {
	TcID                  int
	Z, D, EK, DK, M, C, K hexBytes
}

func mlkemACVP(t *testing.T, set string) (prompt kemGroups, results map[int]kemTest) {
	t.Helper()
	var expected kemGroups
	acvp(t, "kem/mlkem/testdata/"+set, "prompt", &prompt)
	acvp(t, "kem/mlkem/testdata/"+set, "expectedResults", &expected)
	results = map[int]kemTest{}
	for _, g := range expected.TestGroups {
		for _, v := range g.Tests {
			results[v.TcID] = v
		}
	}
	return prompt, results
}

// FIPS 203 key generation: the encapsulation keys of NIST's seeds, through our
// slots. The decapsulation keys are compared as circl packs them. R-251
func TestACVPMLKEMKeyGen(t *testing.T) {
	t.Parallel()
	prompt, results := mlkemACVP(t, "ML-KEM-keyGen-FIPS203")
	a, n := newArena(t), map[string]int{}
	for _, g := range prompt.TestGroups {
		name := strings.ToLower(g.ParameterSet)
		if name == "ml-kem-512" { // not on the list
			continue
		}
		for _, v := range g.Tests {
			seed := append(bytes.Clone(v.D), v.Z...)
			k := newPair(t, a, track(t, name), fill(t, a, seed))
			if want := results[v.TcID].EK; len(want) == 0 || !bytes.Equal(k.public.Bytes(), want) {
				t.Errorf("%s, test %d: encapsulation key differs", name, v.TcID)
			}
			_, private := circlKEMs[name].DeriveKeyPair(seed)
			if packed, err := private.MarshalBinary(); err != nil || !bytes.Equal(packed, results[v.TcID].DK) {
				t.Errorf("%s, test %d: decapsulation key differs", name, v.TcID)
			}
			n[name]++
		}
	}
	t.Log(n)
	if n["ml-kem-768"] < 25 || n["ml-kem-1024"] < 25 {
		t.Errorf("%v vectors, want at least 25 each", n)
	}
}

// FIPS 203 encapsulation with NIST's randomness, by the library that HPKE uses.
// Decapsulation, implicit rejection included, is NIST's with expanded keys,
// which that library does not take: those check circl, which checks us in
// TestKEMDifferential. R-251
func TestACVPMLKEMEncapDecap(t *testing.T) {
	t.Parallel()
	prompt, results := mlkemACVP(t, "ML-KEM-encapDecap-FIPS203")
	n := map[string]int{}
	for _, g := range prompt.TestGroups {
		name := strings.ToLower(g.ParameterSet)
		if name == "ml-kem-512" {
			continue
		}
		for _, v := range g.Tests {
			want := results[v.TcID]
			var c, k []byte
			var err error
			switch g.Function + name {
			case "encapsulationml-kem-768":
				var ek *mlkem.EncapsulationKey768
				if ek, err = mlkem.NewEncapsulationKey768(v.EK); err == nil {
					k, c, err = mlkemtest.Encapsulate768(ek, v.M)
				}
			case "encapsulationml-kem-1024":
				var ek *mlkem.EncapsulationKey1024
				if ek, err = mlkem.NewEncapsulationKey1024(v.EK); err == nil {
					k, c, err = mlkemtest.Encapsulate1024(ek, v.M)
				}
			default:
				c = want.C
				private, unpackErr := circlKEMs[name].UnmarshalBinaryPrivateKey(g.DK)
				if unpackErr != nil {
					t.Fatal(unpackErr)
				}
				k, err = circlKEMs[name].Decapsulate(private, v.C)
			}
			if err != nil || len(want.K) != 32 || !bytes.Equal(k, want.K) || !bytes.Equal(c, want.C) {
				t.Errorf("%s of %s, test %d: %v", g.Function, name, v.TcID, err)
			}
			n[g.Function+" "+name]++
		}
	}
	t.Log(n)
	for _, name := range []string{"ml-kem-768", "ml-kem-1024"} {
		if n["encapsulation "+name] < 25 || n["decapsulation "+name] < 10 {
			t.Errorf("%s: %v", name, n)
		}
	}
}
