package core_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// wrapping are the algorithms that wrap.
var wrapping = func() (names []string) {
	for _, a := range alg.All() {
		if a.Allows(alg.OpWrap) {
			names = append(names, a.Name())
		}
	}
	return names
}()

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := api.ParseBase64(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sha(b []byte) [32]byte { return sha256.Sum256(b) }

// Data keys given and made, of all sizes, with and without associated data, for
// every algorithm: what was wrapped opens to the same, and only with its
// associated data..
func TestWrapRoundTrip(t *testing.T) {
	t.Parallel()
	if len(wrapping) != 6 {
		t.Fatalf("algorithms %v", wrapping)
	}
	_, _, k := store(t)
	s := Session(t, k, "acme")
	aad := api.FormatBase64([]byte("backup 7"))
	for _, name := range wrapping {
		kid := Create(t, k, s, name).KID
		for _, n := range []int{1, 16, 32, 4096} {
			given := api.FormatBase64(bytes.Repeat([]byte{0xd7}, n))
			for _, aad := range []string{"", aad} {
				w := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, PlaintextKeyB64: given, AADB64: aad})
				if w.PlaintextKeyB64 != "" || w.KID != kid || w.Alg != name || w.Receipt == nil {
					t.Errorf("%s: wrapping a given key answers %+v", name, w)
				}
				u := Must[api.UnwrapResponse](t, k, s, "unwrap", &api.UnwrapRequest{KID: Base(kid), WrappedB64: w.WrappedB64, AADB64: aad})
				if u.PlaintextKeyB64 != given || u.KID != kid || u.Alg != name || u.Receipt == nil {
					t.Errorf("%s: %d bytes came back as another key by %s", name, n, u.KID)
				}
			}
			if n < 16 {
				continue
			}
			fresh := Wrap(t, k, s, kid, n)
			if got := unbase64(t, fresh.PlaintextKeyB64); len(got) != n || bytes.Equal(got, make([]byte, n)) {
				t.Errorf("%s: a fresh key has %d bytes", name, len(got))
			}
			if Unwrap(t, k, s, kid, fresh.WrappedB64).PlaintextKeyB64 != fresh.PlaintextKeyB64 {
				t.Errorf("%s: a fresh key of %d bytes came back as another", name, n)
			}
			hidden := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, Size: n, OmitPlaintext: true})
			again := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, Size: n, OmitPlaintext: true})
			first, second := Unwrap(t, k, s, kid, hidden.WrappedB64).PlaintextKeyB64, Unwrap(t, k, s, kid, again.WrappedB64).PlaintextKeyB64
			if hidden.PlaintextKeyB64 != "" || first == second || first == fresh.PlaintextKeyB64 || len(unbase64(t, first)) != n {
				t.Errorf("%s: a hidden key of %d bytes: %q", name, n, hidden.PlaintextKeyB64)
			}
		}
	}
}

// Requests that are not well formed, and keys that do not serve..
func TestWrapRefuses(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	aead, signer, kdf := Create(t, k, s, "aes-256-gcm").KID, Create(t, k, s, "ed25519").KID, Create(t, k, s, "hkdf-sha256").KID
	key, big := api.FormatBase64(make([]byte, 32)), api.FormatBase64(make([]byte, 4097))
	envelope := Wrap(t, k, s, aead, 32).WrappedB64
	for what, c := range map[string]struct {
		verb string
		req  api.Request
		want api.Code
	}{
		"neither key nor size":    {"wrap", &api.WrapRequest{KID: aead}, api.CodeBadRequest},
		"both":                    {"wrap", &api.WrapRequest{KID: aead, PlaintextKeyB64: key, Size: 32}, api.CodeBadRequest},
		"small size":              {"wrap", &api.WrapRequest{KID: aead, Size: 15}, api.CodeBadRequest},
		"negative size":           {"wrap", &api.WrapRequest{KID: aead, Size: -1}, api.CodeBadRequest},
		"large size":              {"wrap", &api.WrapRequest{KID: aead, Size: 4097}, api.CodeBadRequest},
		"large key":               {"wrap", &api.WrapRequest{KID: aead, PlaintextKeyB64: big}, api.CodeTooLarge},
		"hiding a given key":      {"wrap", &api.WrapRequest{KID: aead, PlaintextKeyB64: key, OmitPlaintext: true}, api.CodeBadRequest},
		"large aad":               {"wrap", &api.WrapRequest{KID: aead, Size: 32, AADB64: api.FormatBase64(make([]byte, 1025))}, api.CodeTooLarge},
		"wrap with ed25519":       {"wrap", &api.WrapRequest{KID: signer, Size: 32}, api.CodeUnsupported},
		"wrap with a KDF":         {"wrap", &api.WrapRequest{KID: kdf, Size: 32}, api.CodeUnsupported},
		"wrap with no key":        {"wrap", &api.WrapRequest{KID: "acme/test/aes-256-gcm/" + uuid.NewString(), Size: 32}, api.CodeNotFound},
		"unwrap with ed25519":     {"unwrap", &api.UnwrapRequest{KID: signer, WrappedB64: envelope}, api.CodeUnsupported},
		"unwrap nothing":          {"unwrap", &api.UnwrapRequest{KID: aead}, api.CodeBadRequest},
		"unwrap with no key":      {"unwrap", &api.UnwrapRequest{KID: "acme/test/aes-256-gcm/" + uuid.NewString(), WrappedB64: envelope}, api.CodeNotFound},
		"rewrap with ed25519":     {"rewrap", &api.RewrapRequest{KID: signer, WrappedB64: envelope}, api.CodeUnsupported},
		"sign with an AEAD key":   {"sign", &api.SignRequest{KID: aead, PayloadB3: Digest(1)}, api.CodeUnsupported},
		"derive with an AEAD key": {"derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: aead, Context: "c", Alg: "ed25519"}, api.CodeUnsupported},
	} {
		verb, _ := core.VerbNamed(c.verb)
		if _, err := k.Do(context.Background(), s, verb, c.req); Code(err) != c.want {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
	}
}

// Whatever is wrong with an envelope, its key, its version or its associated
// data, unwrap and rewrap give one and the same answer, to the letter.
// R-235, D-5.
func TestUnwrapIsUniform(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	other := Session(t, k, "other")
	var first *api.Error
	refused := func(what string, s *core.Session, kid string, envelope []byte, aad string) {
		t.Helper()
		for _, verb := range []string{"unwrap", "rewrap"} {
			v, _ := core.VerbNamed(verb)
			var req api.Request = &api.UnwrapRequest{KID: kid, WrappedB64: api.FormatBase64(envelope), AADB64: aad}
			if verb == "rewrap" {
				req = &api.RewrapRequest{KID: kid, WrappedB64: api.FormatBase64(envelope), AADB64: aad}
			}
			r, err := k.Do(context.Background(), s, v, req)
			e := api.AsError(err)
			if first == nil {
				first = e
			}
			if r != nil || e == nil || e.Reason != api.ReasonUnwrap || e.Row != first.Row || e.Error() != first.Error() || e.Cause != nil {
				t.Errorf("%s, %s: %v, want %v", verb, what, err, first)
			}
		}
	}
	aad := api.FormatBase64([]byte("aad"))
	for _, name := range wrapping {
		kid := Base(Create(t, k, s, name).KID)
		second := Base(Create(t, k, s, name).KID)
		theirs := Base(Create(t, k, other, name).KID)
		made := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32, AADB64: aad})
		env := unbase64(t, made.WrappedB64)
		parsed, err := alg.ParseEnvelope(env)
		if err != nil {
			t.Fatal(err)
		}
		remade := func(change func(*alg.Envelope)) []byte {
			e := parsed
			change(&e)
			b, err := alg.AppendEnvelope(nil, e)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		refused("no aad", s, kid, env, "")
		refused("other aad", s, kid, env, api.FormatBase64([]byte("aae")))
		refused("longer aad", s, kid, env, api.FormatBase64([]byte("aad\x00")))
		refused("another key", s, second, env, aad)
		refused("another tenant's key", other, theirs, env, aad)
		refused("as of another key", s, second, remade(func(e *alg.Envelope) { e.KID = second + "#v1" }), aad)
		refused("as of another tenant's key", other, theirs, remade(func(e *alg.Envelope) { e.KID = theirs + "#v1" }), aad)
		refused("as of a version to come", s, kid, remade(func(e *alg.Envelope) { e.KID = kid + "#v2" }), aad)
		for _, twin := range [][2]string{{"aes-256-gcm", "chacha20-poly1305"}, {"chacha20-poly1305", "aes-256-gcm"}} {
			if name == twin[0] {
				refused("as of another algorithm", s, kid, remade(func(e *alg.Envelope) { e.Alg = twin[1] }), aad)
			}
		}
		Rotate(t, k, s, kid)
		refused("under the head by name", s, kid+"#v2", env, aad)
		refused("as of the next version", s, kid, remade(func(e *alg.Envelope) { e.KID = kid + "#v2" }), aad)
		for i := 0; i < len(env); i += 1 + len(env)/100 {
			bad := bytes.Clone(env)
			bad[i] ^= 1 << (i % 8)
			refused(fmt.Sprintf("%s: byte %d flipped", name, i), s, kid, bad, aad)
		}
		for _, n := range []int{1, 3, len(env) / 2, len(env) - 1} {
			refused("cut", s, kid, env[:n], aad)
		}
		refused("longer", s, kid, append(bytes.Clone(env), 0), aad)
		refused("far too long", s, kid, make([]byte, 20_000), aad)
		refused("noise", s, kid, []byte("this is no envelope"), aad)
		u := Must[api.UnwrapResponse](t, k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: made.WrappedB64, AADB64: aad})
		if u.PlaintextKeyB64 != made.PlaintextKeyB64 || u.KID != kid+"#v1" {
			t.Errorf("%s: the refusals harmed the key", name)
		}
	}
}

// Envelopes open after their key was rotated, and rewrap moves them to the head
// without showing the data key; a destroyed version opens nothing, with the
// uniform answer, and a destroyed key says so., D-30.
func TestWrapLifeCycle(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	for _, name := range wrapping {
		kid := Base(Create(t, k, s, name).KID)
		aad := api.FormatBase64([]byte(name))
		first := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32, AADB64: aad})
		Rotate(t, k, s, kid)
		if _, err := Do[api.WrapResponse](k, s, "wrap", &api.WrapRequest{KID: kid + "#v1", Size: 32}); Code(err) != api.CodeStaleVersion {
			t.Errorf("%s: wrap to the old version: %v", name, err)
		}
		k = reopen(t, k)
		s = Session(t, k, "acme")
		opens := func(envelope, version string) {
			t.Helper()
			u, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: envelope, AADB64: aad})
			if err != nil || u.PlaintextKeyB64 != first.PlaintextKeyB64 || u.KID != kid+version {
				t.Errorf("%s: an envelope of %s: %v", name, version, err)
			}
		}
		opens(first.WrappedB64, "#v1")
		moved := Must[api.RewrapResponse](t, k, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: first.WrappedB64, AADB64: aad})
		if moved.KID != kid+"#v2" || moved.Previous != kid+"#v1" || moved.Alg != name || moved.Receipt == nil {
			t.Errorf("%s: rewrapped %+v", name, moved)
		}
		text, err := api.Encode(moved)
		if err != nil || strings.Contains(string(text), first.PlaintextKeyB64) || strings.Contains(string(text), "plaintext") {
			t.Errorf("%s: rewrap shows the data key, or %v", name, err)
		}
		opens(moved.WrappedB64, "#v2")
		opens(first.WrappedB64, "#v1")
		again := Must[api.RewrapResponse](t, k, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: moved.WrappedB64, AADB64: aad})
		if again.WrappedB64 == moved.WrappedB64 || again.Previous != kid+"#v2" {
			t.Errorf("%s: rewrapping at the head gives the same envelope", name)
		}
		Destroy(t, k, s, kid+"#v1")
		if _, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: first.WrappedB64, AADB64: aad}); !api.HasReason(err, api.ReasonUnwrap) {
			t.Errorf("%s: a destroyed version: %v", name, err)
		}
		opens(moved.WrappedB64, "#v2")
		Destroy(t, k, s, kid)
		for _, envelope := range []string{first.WrappedB64, moved.WrappedB64, "AAAA"} {
			if _, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: envelope, AADB64: aad}); Code(err) != api.CodeKeyDestroyed {
				t.Errorf("%s: a destroyed key: %v", name, err)
			}
		}
		if _, err := Do[api.WrapResponse](k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32}); Code(err) != api.CodeKeyDestroyed {
			t.Errorf("%s: wrap to a destroyed key: %v", name, err)
		}
	}
}

// A stranger with the public key that get shows makes envelopes that open.
//
func TestSealOffline(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	for _, name := range wrapping {
		key := Get(t, k, s, Create(t, k, s, name).KID).Key
		public := key.Versions[0].Public
		if a, _ := alg.Lookup(name); a.Kind() == alg.KindAEAD {
			if len(public) != 0 {
				t.Errorf("%s: a secret key shows a public part", name)
			}
			continue
		}
		track, ok := alg.LookupTrack(public[0].Alg)
		if !ok {
			t.Fatalf("no track %s", public[0].Alg)
		}
		recipient, err := track.ParsePublic(unbase64(t, public[0].PubkeyB64))
		if err != nil {
			t.Fatal(err)
		}
		data := []byte("a data key that the KMS never saw")
		bound, err := alg.EnvelopeAAD("acme", key.KID, name, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		e := alg.Envelope{KID: key.KID, Alg: name}
		if e.Enc, e.Body, err = recipient.SealTo([]byte(alg.WrapInfo), bound, data); err != nil {
			t.Fatal(err)
		}
		envelope, err := alg.AppendEnvelope(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		u := Must[api.UnwrapResponse](t, k, s, "unwrap", &api.UnwrapRequest{
			KID: key.KID, WrappedB64: api.FormatBase64(envelope), AADB64: api.FormatBase64([]byte("aad")),
		})
		if !bytes.Equal(unbase64(t, u.PlaintextKeyB64), data) {
			t.Errorf("%s: opened to something else", name)
		}
	}
}

// The log has the hash of the envelope and nothing that depends on the data key
// alone; refusals are on record too. R-013, D-9.
func TestWrapRecords(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "x25519+ml-kem-768").KID
	data := bytes.Repeat([]byte("guess me"), 4)
	w := Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, PlaintextKeyB64: api.FormatBase64(data)})
	Unwrap(t, k, s, kid, w.WrappedB64)
	r := Must[api.RewrapResponse](t, k, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: w.WrappedB64})
	signer := Create(t, k, s, "ed25519").KID
	// Refused with the data key in the request: its hash must not tell it.
	refused := &api.WrapRequest{KID: signer, PlaintextKeyB64: api.FormatBase64(data)}
	if _, err := Do[api.WrapResponse](k, s, "wrap", refused); Code(err) != api.CodeUnsupported {
		t.Fatal(err)
	}
	k.Close()
	hash := func(b64 string) string { return fmt.Sprintf("%x", blake3.Sum256(unbase64(t, b64))) }
	want := []string{"wrap ok " + hash(w.WrappedB64), "unwrap ok " + hash(w.WrappedB64), "rewrap used " + hash(w.WrappedB64), "rewrap ok " + hash(r.WrappedB64)}
	var got []string
	var last uint64
	for _, e := range Audit(t, cfg, report.VerifierKey) {
		if strings.HasSuffix(e.Op, "wrap") {
			if e.Result == "ok" || e.Result == "used" {
				got = append(got, fmt.Sprintf("%s %s %x", e.Op, e.Result, e.InputHash))
				last = e.Index
				if e.Key != Base(kid) || e.KeyVersion != 1 || e.Attestation != "software" {
					t.Errorf("record %s", lineOf(e.Record))
				}
			} else {
				same := *refused
				same.PlaintextKeyB64 = ""
				if text, _ := api.Encode(&same); e.InputHash != sha(text) {
					t.Errorf("the refusal's input hash depends on the data key: %s", lineOf(e.Record))
				}
			}
			if e.InputHash == blake3.Sum256(data) || e.InputHash == sha(data) {
				t.Errorf("%s: the input hash is that of the data key", e.Op)
			}
		}
	}
	if !slices.Equal(got, want) || r.Receipt.LogIndex != last {
		t.Errorf("records\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, content := range files(t, cfg.Dir) {
		if strings.Contains(content, string(data)) || strings.Contains(content, api.FormatBase64(data)) {
			t.Errorf("%s holds the data key", name)
		}
	}
}

// No salt and no encapsulated key comes twice: over eight goroutines, over
// reopening, and in two stores that are copies of one another. R-415, D-19.
func TestWrapNeverRepeats(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	var kids []string
	for _, name := range wrapping {
		kids = append(kids, Create(t, k, s, name).KID)
	}
	k.Close()
	clone := *cfg
	clone.Dir += "-clone"
	Copy(t, cfg.Dir, clone.Dir)
	var mu sync.Mutex
	seen := make(map[string]bool)
	total := 0
	note := func(kid, envelope string) {
		e, err := alg.ParseEnvelope(unbase64(t, envelope))
		if err != nil {
			t.Error(err)
			return
		}
		// What must be unique for each key: enc of a KEM, the salt of an AEAD;
		// and its nonce is random too.
		unique := []string{string(e.Enc)}
		if len(e.Enc) == 0 {
			unique = []string{string(e.Body[:16]), string(e.Body[16:28])}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, u := range unique {
			total++
			if seen[kid+u] {
				t.Errorf("%s: a salt, nonce or encapsulated key came twice", kid)
			}
			seen[kid+u] = true
		}
	}
	given := api.FormatBase64(bytes.Repeat([]byte{7}, 32))
	for range 3 {
		for _, c := range []*core.KMS{Open(t, cfg, core.Options{}), Open(t, &clone, core.Options{})} {
			s := Session(t, c, "acme")
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for i := range 12 {
						kid := kids[i%len(kids)]
						w, err := Do[api.WrapResponse](c, s, "wrap", &api.WrapRequest{KID: kid, PlaintextKeyB64: given})
						if err != nil {
							t.Error(err)
							return
						}
						note(kid, w.WrappedB64)
						r, err := Do[api.RewrapResponse](c, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: w.WrappedB64})
						if err != nil {
							t.Error(err)
							return
						}
						note(kid, r.WrappedB64)
					}
				})
			}
			wg.Wait()
			c.Close()
		}
	}
	if len(seen) != total || total < 3*2*8*24 {
		t.Errorf("%d of %d are different", len(seen), total)
	}
}
