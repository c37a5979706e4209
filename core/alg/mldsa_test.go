package alg_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"github.com/rustyonions/ron-kms/core/alg"
)

// acvp reads one of NIST's ACVP files, as shipped in circl's module.
func acvp(t *testing.T, set, file string, into any) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/circl").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), set, file+".json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(into); err != nil {
		t.Fatal(err)
	}
}

type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// FIPS 204 key generation: the public keys of NIST's seeds, through our slots.
// The private ones are compared as circl packs them. R-060
func TestACVPKeyGen(t *testing.T) {
	t.Parallel()
	type test struct {
		TcID         int
		Seed, PK, SK hexBytes
	}
	type groups struct {
		TestGroups []struct {
			TgID         int
			ParameterSet string
			Tests        []test
		}
	}
	var prompt, expected groups
	acvp(t, "sign/mldsa/testdata/ML-DSA-keyGen-FIPS204", "prompt", &prompt)
	acvp(t, "sign/mldsa/testdata/ML-DSA-keyGen-FIPS204", "expectedResults", &expected)
	results := map[int]test{}
	for _, g := range expected.TestGroups {
		for _, v := range g.Tests {
			results[v.TcID] = v
		}
	}
	private := map[string]func(seed *[32]byte) []byte{
		"ml-dsa-44": func(seed *[32]byte) []byte { _, sk := mldsa44.NewKeyFromSeed(seed); return sk.Bytes() },
		"ml-dsa-65": func(seed *[32]byte) []byte { _, sk := mldsa65.NewKeyFromSeed(seed); return sk.Bytes() },
		"ml-dsa-87": func(seed *[32]byte) []byte { _, sk := mldsa87.NewKeyFromSeed(seed); return sk.Bytes() },
	}
	a, n := newArena(t), map[string]int{}
	for _, g := range prompt.TestGroups {
		name := strings.ToLower(g.ParameterSet)
		tr := track(t, name)
		for _, v := range g.Tests {
			want := results[v.TcID]
			if len(want.PK) != tr.PublicSize() || len(want.SK) == 0 {
				t.Fatalf("test %d: no result", v.TcID)
			}
			k := newPair(t, a, tr, fill(t, a, v.Seed))
			if !bytes.Equal(k.public.Bytes(), want.PK) {
				t.Errorf("test %d: public key differs", v.TcID)
			}
			if !bytes.Equal(private[name]((*[32]byte)(v.Seed)), want.SK) {
				t.Errorf("test %d: private key differs", v.TcID)
			}
			k.expanded.Destroy()
			n[name]++
		}
	}
	t.Log(n)
	for name := range private {
		if n[name] < 25 {
			t.Errorf("%d vectors for %s, want at least 25", n[name], name)
		}
	}
}

// The accumulated vectors of C2SP/CCTV: keys, deterministic signatures of the
// empty message without context and their verification over 100 seeds. R-060
func TestMLDSAAccumulated(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"ml-dsa-44": "d51148e1f9f4fa1a723a6cf42e25f2a99eb5c1b378b3d2dbbd561b1203beeae4",
		"ml-dsa-65": "8358a1843220194417cadbc2651295cd8fc65125b5a5c1a239a16dc8b57ca199",
		"ml-dsa-87": "8c3ad714777622b8f21ce31bb35f71394f23bc0fcf3c78ace5d608990f3b061b",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, tr := newArena(t), track(t, name)
			seeds, sum := sha3.NewSHAKE128(), sha3.NewSHAKE128()
			for range 100 {
				seed := make([]byte, 32)
				seeds.Read(seed)
				s := fill(t, a, seed)
				k := newPair(t, a, tr, s)
				sig, err := tr.SignDeterministic(k.expanded, alg.SchemeRaw, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !k.public.VerifyScheme(alg.SchemeRaw, nil, sig) {
					t.Fatal("does not verify")
				}
				sum.Write(k.public.Bytes())
				sum.Write(sig)
				k.expanded.Destroy()
				s.Destroy()
			}
			got := make([]byte, 32)
			sum.Read(got)
			if hex.EncodeToString(got) != want {
				t.Errorf("accumulated %x", got)
			}
		})
	}
}

// D-1, D-22: signatures are hedged and bound to the context string.
func TestMLDSAHedgedAndBound(t *testing.T) {
	t.Parallel()
	a, tr := newArena(t), track(t, "ml-dsa-65")
	k := generate(t, a, tr)
	msg := []byte("message")
	one, two := k.sign(t, msg), k.sign(t, msg)
	if bytes.Equal(one, two) {
		t.Error("two signatures of one message agree: not hedged")
	}
	for range 2 {
		det, err := tr.SignDeterministic(k.expanded, alg.SchemeV1, msg)
		if err != nil || !k.public.Verify(msg, det) || bytes.Equal(det, one) {
			t.Errorf("deterministic signature: %v", err)
		}
	}
	var pk mldsa65.PublicKey
	if err := pk.UnmarshalBinary(k.public.Bytes()); err != nil {
		t.Fatal(err)
	}
	if !mldsa65.Verify(&pk, msg, []byte("ron-kms/v1"), one) {
		t.Error("does not verify with the context string")
	}
	if mldsa65.Verify(&pk, msg, nil, one) {
		t.Error("verifies without the context string")
	}
	plain, err := tr.SignScheme(k.expanded, alg.SchemeRaw, msg)
	if err != nil || k.public.Verify(msg, plain) {
		t.Errorf("accepts a signature without the context string: %v", err)
	}
}

// The garbage collector does not see the arena: what is put there may hold no
// pointers, and a circl that has some must be refused.
func TestMLDSAKeysHoldNoPointers(t *testing.T) {
	t.Parallel()
	if alg.HasPointers[mldsa44.PrivateKey]() || alg.HasPointers[mldsa65.PrivateKey]() || alg.HasPointers[mldsa87.PrivateKey]() {
		t.Error("private keys hold pointers")
	}
	if !alg.HasPointers[mldsa65.PublicKey]() || !alg.HasPointers[[1]struct{ s string }]() || alg.HasPointers[[0]*int]() {
		t.Error("the check does not see pointers")
	}
	a := newArena(t)
	if _, _, err := alg.Pointered().Generate(a); err == nil || !strings.Contains(err.Error(), "pointers") {
		t.Errorf("generated: %v", err)
	}
	if n := a.Stats().Slots; n != 0 {
		t.Errorf("%d slots left", n)
	}
}
