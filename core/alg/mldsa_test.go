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

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/rustyonions/ron-kms/core/alg"
)

// acvp reads one of NIST's ACVP files, as shipped in circl's module.
func acvp(t *testing.T, set, file string, into any) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/circl").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "sign/mldsa/testdata", set, file+".json.gz"))
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
	acvp(t, "ML-DSA-keyGen-FIPS204", "prompt", &prompt)
	acvp(t, "ML-DSA-keyGen-FIPS204", "expectedResults", &expected)
	results := map[int]test{}
	for _, g := range expected.TestGroups {
		for _, v := range g.Tests {
			results[v.TcID] = v
		}
	}
	a, tr, n := newArena(t), track(t, "ml-dsa-65"), 0
	for _, g := range prompt.TestGroups {
		if g.ParameterSet != "ML-DSA-65" {
			continue
		}
		for _, v := range g.Tests {
			want := results[v.TcID]
			if len(want.PK) != tr.PublicSize() || len(want.SK) != mldsa65.PrivateKeySize {
				t.Fatalf("test %d: no result", v.TcID)
			}
			k := newPair(t, a, tr, fill(t, a, v.Seed))
			if !bytes.Equal(k.public.Bytes(), want.PK) {
				t.Errorf("test %d: public key differs", v.TcID)
			}
			_, sk := mldsa65.NewKeyFromSeed((*[32]byte)(v.Seed))
			if !bytes.Equal(sk.Bytes(), want.SK) {
				t.Errorf("test %d: private key differs", v.TcID)
			}
			k.expanded.Destroy()
			n++
		}
	}
	if n < 25 {
		t.Errorf("%d vectors for ML-DSA-65, want at least 25", n)
	}
}

// The accumulated vectors of C2SP/CCTV: keys, deterministic signatures of the
// empty message and their verification over 100 seeds. R-060
func TestMLDSAAccumulated(t *testing.T) {
	t.Parallel()
	const want = "8358a1843220194417cadbc2651295cd8fc65125b5a5c1a239a16dc8b57ca199"
	a, tr := newArena(t), alg.WithoutContext()
	seeds, sum := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	for range 100 {
		seed := make([]byte, 32)
		seeds.Read(seed)
		s := fill(t, a, seed)
		k := newPair(t, a, tr, s)
		sig, err := tr.SignDeterministic(k.expanded, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !k.public.Verify(nil, sig) {
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
		det, err := tr.SignDeterministic(k.expanded, msg)
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
	plain, err := alg.WithoutContext().Sign(k.expanded, msg)
	if err != nil || k.public.Verify(msg, plain) {
		t.Errorf("accepts a signature without the context string: %v", err)
	}
}

// The garbage collector does not see the arena: what is put there may hold no
// pointers, and a circl that has some must be refused.
func TestMLDSAKeysHoldNoPointers(t *testing.T) {
	t.Parallel()
	if alg.HasPointers[mldsa65.PrivateKey]() {
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
