package alg_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

const (
	envelopeFile = "../../docs/vectors/envelope.json"
	deriveFile   = "../../docs/vectors/derive.json"
)

type envelopeVectors struct {
	Comment string            `json:"comment"`
	Vectors []envelopeVector  `json:"vectors"`
	Refused []refusedEnvelope `json:"refused"`
}

type envelopeVector struct {
	Name      string   `json:"name"`
	Seed      hexBytes `json:"seed_hex"`
	Public    hexBytes `json:"public_hex,omitempty"`
	Tenant    string   `json:"tenant"`
	KID       string   `json:"kid"`
	Alg       string   `json:"alg"`
	CallerAAD hexBytes `json:"caller_aad_hex"`
	AAD       hexBytes `json:"aad_hex"`
	Plaintext hexBytes `json:"plaintext_hex"`
	Envelope  hexBytes `json:"envelope_hex"`
}

type refusedEnvelope struct {
	Name     string   `json:"name"`
	Envelope hexBytes `json:"envelope_hex"`
}

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

type deriveVectors struct {
	Comment string          `json:"comment"`
	Salt    hexBytes        `json:"salt_hex"`
	Vectors []deriveVector  `json:"vectors"`
	Refused []refusedLabels `json:"refused"`
}

type deriveVector struct {
	refusedLabels
	Key  hexBytes `json:"key_hex"`
	Info string   `json:"info"`
	OKM  hexBytes `json:"okm_hex"`
}

type refusedLabels struct {
	Name    string `json:"name"`
	Tenant  string `json:"tenant"`
	Purpose string `json:"purpose"`
	Context string `json:"context"`
}

func readVectors(t *testing.T, file string, into any) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

func writeVectors(t *testing.T, file string, v any) {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// makeEnvelopeVectors makes new ones. What is sealed is random, so they are not
// the same again.
func makeEnvelopeVectors(t *testing.T) envelopeVectors {
	a := newArena(t)
	out := envelopeVectors{Comment: "Wrapped data keys, see docs/spec/envelope.md. The seeds are public: never use these keys." +
		" What is refused is no envelope, whatever the key."}
	for i, tr := range wrappers() {
		v := envelopeVector{
			Name: tr.Name(), Seed: bytes.Repeat([]byte{byte(0xb0 + i)}, tr.SeedSize()), Tenant: "acme", Alg: tr.Name(),
			KID:       "acme/data/" + tr.Name() + "/018f4c2e-7a3b-7c55-9d10-3f2b6a9e4d01#v3",
			CallerAAD: []byte("row 7")[:5*(i%2)], Plaintext: bytes.Repeat([]byte{byte(i + 1)}, 32),
		}
		k := newPair(t, a, tr, fill(t, a, v.Seed))
		v.Public = k.public.Bytes()
		v.AAD = envelopeAADByHand(v.Tenant, v.KID, v.Alg, v.CallerAAD)
		v.Envelope = k.wrap(t, v.Tenant, v.KID, v.CallerAAD, v.Plaintext)
		out.Vectors = append(out.Vectors, v)
	}
	e, err := alg.ParseEnvelope(out.Vectors[0].Envelope)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name string, b []byte) {
		out.Refused = append(out.Refused, refusedEnvelope{name, b})
	}
	change := func(name string, change func(e *alg.Envelope)) {
		c := e
		change(&c)
		refuse(name, encodeEnvelope(c))
	}
	good := []byte(out.Vectors[0].Envelope)
	refuse("empty", nil)
	refuse("version 2", append([]byte{2}, good[1:]...))
	refuse("cut short", good[:len(good)-1])
	refuse("trailing byte", append(bytes.Clone(good), 0))
	change("kid without a version", func(e *alg.Envelope) { e.KID, _, _ = strings.Cut(e.KID, "#") })
	change("version with a leading zero", func(e *alg.Envelope) { e.KID = strings.Replace(e.KID, "#v3", "#v03", 1) })
	change("version of 2^64", func(e *alg.Envelope) { e.KID = strings.Replace(e.KID, "#v3", "#v18446744073709551616", 1) })
	change("alg that is not on the list", func(e *alg.Envelope) { e.Alg = "x448" })
	change("alg that signs", func(e *alg.Envelope) { e.Alg = "ed25519" })
	change("alias of an alg", func(e *alg.Envelope) { e.Alg, e.Enc = "x-wing", make([]byte, 1120) })
	change("no enc", func(e *alg.Envelope) { e.Enc = nil })
	change("enc for an AEAD", func(e *alg.Envelope) { e.Alg, e.Body = "aes-256-gcm", make([]byte, 76) })
	change("enc of another KEM", func(e *alg.Envelope) { e.Alg = "ml-kem-768" })
	change("body of a tag alone", func(e *alg.Envelope) { e.Body = e.Body[:16] })
	change("data key too long", func(e *alg.Envelope) { e.Body = make([]byte, alg.MaxDataKey+17) })
	return out
}

// the published envelopes open, here and by code that shares
// nothing with ours, and the refused ones do not parse.
func TestEnvelopeVectors(t *testing.T) {
	if *update == "envelope" {
		writeVectors(t, envelopeFile, makeEnvelopeVectors(t))
	}
	var vs envelopeVectors
	readVectors(t, envelopeFile, &vs)
	a, algs := newArena(t), map[string]bool{}
	for _, v := range vs.Vectors {
		algs[v.Alg] = true
		tr := track(t, v.Alg)
		k := newPair(t, a, tr, fill(t, a, v.Seed))
		if !bytes.Equal(k.public.Bytes(), v.Public) {
			t.Errorf("%s: public key differs", v.Name)
		}
		if got, err := k.unwrap(t, v.Tenant, v.CallerAAD, v.Envelope); err != nil || !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%s: %v", v.Name, err)
		}
		aad, err := alg.EnvelopeAAD(v.Tenant, v.KID, v.Alg, v.CallerAAD)
		if err != nil || !bytes.Equal(aad, v.AAD) {
			t.Errorf("%s: associated data %x, %v", v.Name, aad, err)
		}

		kid, name, enc, body, ok := parseEnvelopeByHand(v.Envelope)
		if !ok || kid != v.KID || name != v.Alg || !bytes.Equal(v.AAD, envelopeAADByHand(v.Tenant, kid, name, v.CallerAAD)) {
			t.Fatalf("%s: reads otherwise by hand", v.Name)
		}
		var plaintext []byte
		if tr.Kind() == alg.KindKEM {
			plaintext, err = openByHand(t, name, v.Seed, []byte("ron-kms/wrap/v1"), v.AAD, enc, body)
		} else {
			plaintext, err = openAEADByHand(t, name, v.Seed, v.AAD, body)
			again := aeadByHand(t, name, v.Seed, body[:16]).Seal(bytes.Clone(body[:28]), body[16:28], v.Plaintext, v.AAD)
			if !bytes.Equal(again, body) {
				t.Errorf("%s: sealed again by hand, it differs", v.Name)
			}
		}
		if err != nil || !bytes.Equal(plaintext, v.Plaintext) {
			t.Errorf("%s: by hand: %v", v.Name, err)
		}
	}
	for _, tr := range wrappers() {
		if !algs[tr.Name()] {
			t.Errorf("no vector for %s", tr.Name())
		}
	}
	if len(vs.Refused) < 10 {
		t.Error("few refused envelopes")
	}
	for _, v := range vs.Refused {
		if _, err := alg.ParseEnvelope(v.Envelope); !errors.Is(err, alg.ErrEnvelope) {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}

func makeDeriveVectors(t *testing.T) deriveVectors {
	salt := sha256.Sum256([]byte("ron-kms/derive/v1"))
	out := deriveVectors{
		Comment: "HKDF-SHA256, see docs/spec/derive.md. The keys are public: never use them. What is refused makes no info.",
		Salt:    salt[:],
	}
	long := strings.Repeat("x", 255)
	for i, v := range []deriveVector{
		{refusedLabels{"32 bytes", "acme", "release", "ci"}, nil, "", make([]byte, 32)},
		{refusedLabels{"another context", "acme", "release", "ci.2"}, nil, "", make([]byte, 32)},
		{refusedLabels{"another purpose", "acme", "data", "ci"}, nil, "", make([]byte, 32)},
		{refusedLabels{"another tenant", "acme2", "release", "ci"}, nil, "", make([]byte, 32)},
		{refusedLabels{"colons", "ron:acme", "svc:registry", "v1:x"}, nil, "", make([]byte, 32)},
		{refusedLabels{"64 bytes", "acme", "release", "ci"}, nil, "", make([]byte, 64)},
		{refusedLabels{"longest labels", long, long, long}, nil, "", make([]byte, 32)},
	} {
		v.Key = bytes.Repeat([]byte{byte(0xc0 + i/6)}, 32)
		v.Info = "ron-kms::" + v.Tenant + "::" + v.Purpose + "::" + v.Context
		okm, err := hkdf.Key(sha256.New, v.Key, salt[:], v.Info, len(v.OKM))
		if err != nil {
			t.Fatal(err)
		}
		v.OKM = okm
		out.Vectors = append(out.Vectors, v)
	}
	out.Refused = append(out.Refused, []refusedLabels{
		{"empty context", "acme", "release", ""},
		{"empty tenant", "", "release", "ci"},
		{"empty purpose", "acme", "", "ci"},
		{"two colons in the context", "acme", "release", "a::b"},
		{"two colons in the tenant", "acme::release", "ci", "x"},
		{"colon at the end", "acme:", "release", "ci"},
		{"colon at the beginning", "acme", ":release", "ci"},
		{"space", "acme", "release", "a b"},
		{"slash", "acme", "release", "a/b"},
		{"not ASCII", "acme", "release", "é"},
		{"too long", "acme", "release", long + "x"},
	}...)
	return out
}

// the published derivations are what the product derives and what
// HKDF with the published salt does.
func TestDeriveVectors(t *testing.T) {
	if *update == "derive" {
		writeVectors(t, deriveFile, makeDeriveVectors(t))
	}
	var vs deriveVectors
	readVectors(t, deriveFile, &vs)
	if len(vs.Vectors) < 7 || len(vs.Refused) < 10 {
		t.Fatal("few vectors")
	}
	a, tr := newArena(t), track(t, "hkdf-sha256")
	for _, v := range vs.Vectors {
		info, err := alg.DeriveInfo(v.Tenant, v.Purpose, v.Context)
		if err != nil || info != v.Info {
			t.Errorf("%s: %q, %v", v.Name, info, err)
		}
		k := newPair(t, a, tr, fill(t, a, v.Key))
		got, err := tr.DeriveSeed(k.expanded, a, info, len(v.OKM))
		if err != nil || !bytes.Equal(reveal(t, got), v.OKM) {
			t.Errorf("%s: %v", v.Name, err)
		}
		byHand, err := hkdf.Key(sha256.New, v.Key, vs.Salt, v.Info, len(v.OKM))
		if err != nil || !bytes.Equal(byHand, v.OKM) {
			t.Errorf("%s: by hand: %v", v.Name, err)
		}
	}
	for _, v := range vs.Refused {
		if info, err := alg.DeriveInfo(v.Tenant, v.Purpose, v.Context); !errors.Is(err, alg.ErrDerive) {
			t.Errorf("%s: %q, %v", v.Name, info, err)
		}
	}
}

// The published script agrees with both files, and with neither once changed.
func TestOfflineVectors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "v.json")
	for _, name := range []string{envelopeFile, deriveFile} {
		if out, err := verifyOffline(t, name); err != nil || strings.Contains(out, "BAD") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	var es envelopeVectors
	var ds deriveVectors
	readVectors(t, envelopeFile, &es)
	readVectors(t, deriveFile, &ds)
	for name, bad := range map[string]any{
		"no vectors":       envelopeVectors{},
		"aad":              envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.AAD = append(bytes.Clone(v.AAD), 0) })},
		"caller's aad":     envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.CallerAAD = []byte("x") })},
		"tenant":           envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.Tenant = "acme2" })},
		"kid":              envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.KID += "1" })},
		"alg":              envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.Alg = "x25519+ml-kem-768" })},
		"envelope":         envelopeVectors{Vectors: with(es.Vectors, func(v *envelopeVector) { v.Envelope = v.Envelope[:40] })},
		"good refused":     envelopeVectors{Vectors: es.Vectors, Refused: []refusedEnvelope{{"x", es.Vectors[0].Envelope}}},
		"okm":              deriveVectors{Salt: ds.Salt, Vectors: with(ds.Vectors, func(v *deriveVector) { v.OKM = append(v.OKM[:31:31], 1) })},
		"info":             deriveVectors{Salt: ds.Salt, Vectors: with(ds.Vectors, func(v *deriveVector) { v.Info += "x" })},
		"context":          deriveVectors{Salt: ds.Salt, Vectors: with(ds.Vectors, func(v *deriveVector) { v.Context += "x" })},
		"salt":             deriveVectors{Salt: make([]byte, 32), Vectors: ds.Vectors},
		"good one refused": deriveVectors{Salt: ds.Salt, Vectors: ds.Vectors, Refused: []refusedLabels{ds.Vectors[0].refusedLabels}},
	} {
		writeVectors(t, file, bad)
		if out, err := verifyOffline(t, file); err == nil {
			t.Errorf("%s changed: accepted\n%s", name, out)
		}
	}
}

// with returns all, the first of them changed.
func with[T any](all []T, change func(*T)) []T {
	out := append([]T(nil), all...)
	change(&out[0])
	return out
}
