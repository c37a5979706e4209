package capability_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gopkg.in/macaroon.v2"

	"github.com/rustyonions/ron-kms/core/capability"
)

var update = flag.Bool("update", false, "write docs/vectors/token.json anew")

const (
	vectorsPath = "../../docs/vectors/token.json"
	specPath    = "../../docs/spec/token.md"
)

// vectorFile is docs/vectors/token.json.
type vectorFile struct {
	Spec     string            `json:"spec"`
	RootKeys map[string]string `json:"root_keys"`
	Tokens   []tokenVector     `json:"tokens"`
	Refused  []refusedVector   `json:"refused"`
	Requests []requestVector   `json:"requests"`
	// Attenuations are for holders: no key takes part.
	Attenuations []attenuationVector `json:"attenuations"`
	Caveats      caveatVectors       `json:"caveats"`
}

type attenuationVector struct {
	Name    string   `json:"name"`
	Token   string   `json:"token"`
	Caveats []string `json:"caveats"`
	Result  string   `json:"result"` // empty: refused
}

// caveatVectors are texts that are a caveat and texts that are none.
type caveatVectors struct {
	Good    []string `json:"good"`
	Refused []string `json:"refused"`
}

type tokenVector struct {
	Name       string   `json:"name"`
	RootKeyID  string   `json:"root_key_id"`
	Issued     int64    `json:"issued"`
	Nonce      string   `json:"nonce"`
	Identifier string   `json:"identifier"`
	Caveats    []string `json:"caveats"`
	Tags       []string `json:"tags"`
	Token      string   `json:"token"`
	Actor      string   `json:"actor"`
	Tenant     string   `json:"tenant"`
	Expiry     int64    `json:"expiry"`
}

type refusedVector struct {
	Name   string `json:"name"`
	Token  string `json:"token"`
	Reason string `json:"reason"`
}

type requestVector struct {
	Name      string   `json:"name"`
	Token     string   `json:"token"` // name of one of tokens
	Scopes    []string `json:"scopes"`
	Verb      string   `json:"verb,omitempty"`
	Tenant    string   `json:"tenant"`
	KID       string   `json:"kid,omitempty"`
	Purpose   string   `json:"purpose,omitempty"`
	BodyBytes int64    `json:"body_bytes,omitempty"`
	Payload   string   `json:"payload_b3,omitempty"`
	Now       int64    `json:"now"`
	// Of the presenter.
	Audience  string  `json:"audience,omitempty"`
	ClientKey string  `json:"client_key,omitempty"`
	PeerUID   *uint32 `json:"peer_uid,omitempty"`
	Reason    string  `json:"reason"` // empty: cleared
}

// request is the vector's request, and who presents the token.
func (v requestVector) request(t testing.TB) (capability.Request, capability.Presenter) {
	return capability.Request{
			Scopes: v.Scopes, Verb: v.Verb, Tenant: v.Tenant, KID: v.KID, Purpose: v.Purpose, BodyBytes: v.BodyBytes,
			Payload: digest(t, v.Payload), Now: time.Unix(v.Now, 0),
		}, capability.Presenter{
			TLSKeyHash: digest(t, v.ClientKey), PeerUID: v.PeerUID, Audience: v.Audience,
		}
}

// digest reads 64 hex digits, nothing as all zeros.
func digest(t testing.TB, s string) (d [32]byte) {
	t.Helper()
	if s == "" {
		return d
	}
	if n, err := hex.Decode(d[:], []byte(s)); err != nil || n != len(d) {
		t.Fatalf("digest %q: %v", s, err)
	}
	return d
}

// makeVectors builds the file from the second implementation.
func makeVectors() vectorFile {
	f := vectorFile{Spec: "docs/spec/token.md", RootKeys: map[string]string{rootID: hex.EncodeToString(rootKey)}}
	add := func(name, actor string, expiry int64, caveats ...string) {
		t, tags := chain(rootKey, capability.Location, ident, caveats...)
		v := tokenVector{Name: name, RootKeyID: rootID, Issued: issued, Nonce: nonce, Identifier: ident, Caveats: caveats,
			Token: t.text(), Actor: actor, Tenant: "acme", Expiry: expiry}
		for _, tag := range tags {
			v.Tags = append(v.Tags, hex.EncodeToString(tag))
		}
		f.Tokens = append(f.Tokens, v)
	}
	const actor = "cap:9487be60e6c87a93" // SHA-256 of ident, by sha256sum
	kid := "acme/audit/ed25519+ml-dsa-65/" + uuidA
	add("minimal", actor, expiry, tenantA, scopeA, expA)
	add("attenuated", actor, 1800000000, tenantA, scopeA, expA,
		"scope=kms:sign", "kid-prefix="+kid, "purpose-prefix=audit", "nbf=1700000000", "exp=1800000000")
	add("all scopes", actor, 253402300799, tenantA, "scope="+strings.Join(capability.ScopeList(), ","), "exp=253402300799")
	add("disjoint scopes", actor, expiry, tenantA, "scope=kms:read", "scope=kms:verify", expA)
	add("two tenants", actor, expiry, tenantA, "tenant=globex", scopeA, expA)

	add("full", actor, expiry, tenantA, scopeA, expA, "aud=https://kms.example:9446", "client-key="+digestA, "peer-uid=1000",
		"verb=sign,verify", "alg=ed25519,ed25519+ml-dsa-65", "max-bytes=1024", "payload-b3="+digestB, "rate=10/20", "rate=5/40")
	add("root peer", actor, expiry, tenantA, scopeA, expA, "peer-uid=0")

	for _, r := range refusals() {
		f.Refused = append(f.Refused, refusedVector{r.name, r.token, r.reason})
	}

	req := func(name, token, reason string, now int64, tenant, kid, purpose string, scopes ...string) {
		f.Requests = append(f.Requests, requestVector{Name: name, Token: token, Scopes: scopes, Tenant: tenant, KID: kid, Purpose: purpose, Now: now, Reason: reason})
	}
	req("sign", "minimal", "", 1750000000, "acme", kid, "audit", "kms:sign")
	req("last second", "minimal", "", expiry-1, "acme", kid, "audit", "kms:sign")
	req("expired at exp", "minimal", "token-expired", expiry, "acme", kid, "audit", "kms:sign")
	req("clock not set", "minimal", "token-not-yet", 0, "acme", kid, "audit", "kms:sign")
	req("other tenant", "minimal", "tenant-mismatch", 1750000000, "globex", "", "", "kms:sign")
	req("other tenant's key", "minimal", "tenant-mismatch", 1750000000, "acme", "globex/audit/ed25519/"+uuidA, "audit", "kms:sign")
	req("scope not held", "minimal", "scope-missing", 1750000000, "acme", kid, "audit", "kms:rotate")
	req("one of two scopes", "minimal", "", 1750000000, "acme", kid, "audit", "kms:read", "kms:verify")
	req("any version", "attenuated", "", 1750000000, "acme", kid+"#v3", "audit", "kms:sign")
	req("first second", "attenuated", "", 1700000000, "acme", kid, "audit", "kms:sign")
	req("before nbf", "attenuated", "token-not-yet", 1699999999, "acme", kid, "audit", "kms:sign")
	req("earliest exp counts", "attenuated", "token-expired", 1800000000, "acme", kid, "audit", "kms:sign")
	req("scope narrowed", "attenuated", "scope-missing", 1750000000, "acme", kid, "audit", "kms:verify")
	req("other key", "attenuated", "kid-mismatch", 1750000000, "acme", "acme/audit/ed25519/"+uuidA, "audit", "kms:sign")
	req("no key", "attenuated", "kid-mismatch", 1750000000, "acme", "", "", "kms:sign")
	req("scopes intersect", "disjoint scopes", "scope-missing", 1750000000, "acme", kid, "audit", "kms:read", "kms:verify")
	req("tenants disagree, first", "two tenants", "tenant-mismatch", 1750000000, "acme", "", "", "kms:sign")
	req("tenants disagree, second", "two tenants", "tenant-mismatch", 1750000000, "globex", "", "", "kms:sign")

	uid := func(n uint32) *uint32 { return &n }
	full := requestVector{Token: "full", Scopes: []string{"kms:sign"}, Verb: "sign", Tenant: "acme", KID: kid, Purpose: "audit", BodyBytes: 1024,
		Payload: digestB, Now: 1750000000, Audience: "https://kms.example:9446", ClientKey: digestA, PeerUID: uid(1000)}
	for _, c := range []struct {
		name, reason string
		change       func(*requestVector)
	}{
		{"all there is", "", func(*requestVector) {}},
		{"other audience", "audience-mismatch", func(r *requestVector) { r.Audience = "https://kms.example:9447" }},
		{"audience in capitals", "audience-mismatch", func(r *requestVector) { r.Audience = "https://KMS.example:9446" }},
		{"no audience", "audience-mismatch", func(r *requestVector) { r.Audience = "" }},
		{"other client key", "presenter-mismatch", func(r *requestVector) { r.ClientKey = digestB }},
		{"no client key", "presenter-mismatch", func(r *requestVector) { r.ClientKey = "" }},
		{"other uid", "presenter-mismatch", func(r *requestVector) { r.PeerUID = uid(1001) }},
		{"uid 0 for another", "presenter-mismatch", func(r *requestVector) { r.PeerUID = uid(0) }},
		{"no uid", "presenter-mismatch", func(r *requestVector) { r.PeerUID = nil }},
		{"other verb", "verb-mismatch", func(r *requestVector) { r.Verb = "sign_batch" }},
		{"part of a verb", "verb-mismatch", func(r *requestVector) { r.Verb = "sig" }},
		{"no verb", "verb-mismatch", func(r *requestVector) { r.Verb = "" }},
		{"other algorithm", "alg-mismatch", func(r *requestVector) { r.KID = "acme/audit/ml-dsa-65/" + uuidA }},
		{"algorithm of a new key", "", func(r *requestVector) { r.KID = "acme/audit/ed25519" }},
		{"no algorithm", "alg-mismatch", func(r *requestVector) { r.KID = "acme/audit" }},
		{"no key, no algorithm", "alg-mismatch", func(r *requestVector) { r.KID = "" }},
		{"one byte more", "body-too-large", func(r *requestVector) { r.BodyBytes++ }},
		{"size not known", "body-too-large", func(r *requestVector) { r.BodyBytes = 0 }},
		{"negative size", "body-too-large", func(r *requestVector) { r.BodyBytes = -1 }},
		{"other payload", "payload-mismatch", func(r *requestVector) { r.Payload = digestA }},
		{"no payload", "payload-mismatch", func(r *requestVector) { r.Payload = "" }},
		{"expired comes first", "token-expired", func(r *requestVector) { r.Now, r.Verb = expiry, "" }},
	} {
		r := full
		r.Name, r.Reason = c.name, c.reason
		c.change(&r)
		f.Requests = append(f.Requests, r)
	}
	root := requestVector{Name: "uid 0", Token: "root peer", Scopes: []string{"kms:sign"}, Tenant: "acme", Now: 1750000000, PeerUID: uid(0)}
	f.Requests = append(f.Requests, root)
	root.Name, root.PeerUID, root.Reason = "uid 0 is not no uid", nil, "presenter-mismatch"
	f.Requests = append(f.Requests, root)

	narrow := func(name, token string, caveats ...string) {
		f.Attenuations = append(f.Attenuations, attenuationVector{Name: name, Token: token, Caveats: caveats})
	}
	minimal := f.Tokens[0].Token
	for _, v := range f.Tokens {
		first, _ := chain(rootKey, capability.Location, ident, v.Caveats[0])
		narrow(v.Name, first.text(), v.Caveats[1:]...)
		f.Attenuations[len(f.Attenuations)-1].Result = v.Token
	}
	narrow("a caveat of a later version stays", forge(tenantA, scopeA, expA, "invented-later=1"), "scope=kms:sign")
	f.Attenuations[len(f.Attenuations)-1].Result = forge(tenantA, scopeA, expA, "invented-later=1", "scope=kms:sign")
	narrow("up to 32 caveats", minimal, repeat(expA, 29)...)
	f.Attenuations[len(f.Attenuations)-1].Result = forge(append([]string{tenantA, scopeA, expA}, repeat(expA, 29)...)...)
	narrow("33 caveats", minimal, repeat(expA, 30)...)
	narrow("no caveat", minimal)
	narrow("too long", sized(3072), expA)
	narrow("unknown caveat", minimal, "ip=127.0.0.1")
	narrow("malformed caveat", minimal, "scope=kms:verify,kms:sign")
	for _, r := range f.Refused {
		switch r.Reason {
		case "token-missing", "token-malformed":
			narrow("token: "+r.Name, r.Token, expA)
		}
	}

	f.Caveats.Good = goodCaveats()
	unknown, malformed := badCaveats()
	f.Caveats.Refused = append(unknown, malformed...)
	return f
}

// The vectors are what the second implementation makes, and the product
// accepts, attenuates to, refuses and clears exactly them.
func TestVectors(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(vectorsPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s is not what the second implementation makes; run go test -update", vectorsPath)
	}
	var f vectorFile
	if err := json.Unmarshal(got, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Tokens) == 0 || len(f.Refused) == 0 || len(f.Requests) == 0 || len(f.Attenuations) == 0 || len(f.Caveats.Good) == 0 || len(f.Caveats.Refused) == 0 {
		t.Fatal("no vectors found")
	}
	grants := map[string]*capability.Grant{}
	for _, v := range f.Tokens {
		g, err := verifier().Verify(v.Token)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		grants[v.Name] = g
		if g.ID() != v.Actor || g.Tenant() != v.Tenant || g.Expiry().Unix() != v.Expiry {
			t.Errorf("%s: grant %s %s %d", v.Name, g.ID(), g.Tenant(), g.Expiry().Unix())
		}
		// The same token again, by attenuation from its first caveat.
		first, _ := chain(rootKey, capability.Location, ident, v.Caveats[0])
		var rest []capability.Caveat
		for _, text := range v.Caveats[1:] {
			rest = append(rest, caveat(t, text))
		}
		if again, err := capability.Attenuate(first.text(), rest...); err != nil || again != v.Token {
			t.Errorf("%s: attenuation does not make the vector: %v", v.Name, err)
		}
	}
	for _, v := range f.Refused {
		if _, err := verifier().Verify(v.Token); reason(err) != v.Reason {
			t.Errorf("refused %s: %v, want %s", v.Name, err, v.Reason)
		}
	}
	for _, v := range f.Requests {
		r, p := v.request(t)
		if err := present(grants[v.Token], p, r); reason(err) != v.Reason {
			t.Errorf("request %s: %v, want %q", v.Name, err, v.Reason)
		}
	}
	for _, v := range f.Attenuations {
		var list []capability.Caveat
		for _, text := range v.Caveats {
			c, err := capability.ParseCaveat(text)
			if err != nil {
				list = nil
				break
			}
			list = append(list, c)
		}
		if got, err := capability.Attenuate(v.Token, list...); got != v.Result || (err == nil) != (v.Result != "") {
			t.Errorf("attenuation %s: %v", v.Name, err)
		}
	}
	for _, text := range f.Caveats.Good {
		if c, err := capability.ParseCaveat(text); err != nil || c.String() != text {
			t.Errorf("caveat %q: %v", text, err)
		}
	}
	for _, text := range f.Caveats.Refused {
		if _, err := capability.ParseCaveat(text); !errors.Is(err, capability.ErrInvalid) {
			t.Errorf("caveat %q: %v", text, err)
		}
	}
}

// present clears r for whoever presents the token, as the engine does.
func present(g *capability.Grant, p capability.Presenter, r capability.Request) error {
	bound, err := g.Bind(p)
	if err != nil {
		if _, timeErr := g.Clear(r); reason(timeErr) == "token-expired" || reason(timeErr) == "token-not-yet" {
			return timeErr
		}
		return err
	}
	_, err = bound.Clear(r)
	return err
}

// The worked example of the specification is the first vector.
func TestSpecExample(t *testing.T) {
	t.Parallel()
	spec, err := os.ReadFile(specPath)
	if err != nil {
		t.Fatal(err)
	}
	v := makeVectors().Tokens[0]
	parts := append([]string{hex.EncodeToString(rootKey), v.Identifier, v.Token, v.Actor}, append(v.Tags, v.Caveats...)...)
	for _, part := range parts {
		if !bytes.Contains(spec, []byte(part)) {
			t.Errorf("%s lacks %s", specPath, part)
		}
	}
	for _, s := range capability.ScopeList() {
		if !bytes.Contains(spec, []byte(s)) {
			t.Errorf("%s lacks %s", specPath, s)
		}
	}
}

type refusalCase struct{ name, token, reason string }

// refusals is the negative set: every way a token can be bad, each as close
// to a good one as can be.
func refusals() []refusalCase {
	good, _ := chain(rootKey, capability.Location, ident, tenantA, scopeA, expA)
	data := good.bytes()
	edit := func(change func(*raw)) string {
		t, _ := chain(rootKey, capability.Location, ident, tenantA, scopeA, expA)
		change(&t)
		return t.text()
	}
	other := func(key []byte, location, identifier string) string {
		t, _ := chain(key, location, identifier, tenantA, scopeA, expA)
		return t.text()
	}
	with := func(caveats ...string) string { return forge(append([]string{tenantA, scopeA, expA}, caveats...)...) }
	v1, err := macaroon.New(rootKey, []byte(ident), capability.Location, macaroon.V1)
	if err != nil {
		panic(err)
	}
	v2, err := macaroon.New(rootKey, []byte(ident), capability.Location, macaroon.V2)
	if err != nil {
		panic(err)
	}
	for _, m := range []*macaroon.Macaroon{v1, v2} {
		for _, c := range []string{tenantA, scopeA, expA} {
			if err := m.AddFirstPartyCaveat([]byte(c)); err != nil {
				panic(err)
			}
		}
	}
	v1Binary, err := v1.MarshalBinary()
	if err != nil {
		panic(err)
	}
	v2JSON, err := v2.MarshalJSON()
	if err != nil {
		panic(err)
	}
	longVarint := append([]byte{2, 1, 0x87, 0}, data[3:]...) // the location's length 7 in two bytes
	spare := []byte(forge("tenant=acme23", scopeA, expA))    // the same bytes with other unused bits
	if len(spare)%4 == 0 {
		panic("the sample token has no spare bits")
	}
	spare[len(spare)-1]++
	text := good.text()

	cases := []refusalCase{
		{"empty", "", "token-missing"},
		{"not base64", "not a token", "token-malformed"},
		{"V1 binary", b64(v1Binary), "token-malformed"},
		{"V2 JSON", string(v2JSON), "token-malformed"},
		{"V2 JSON in base64", b64(v2JSON), "token-malformed"},
		{"two tokens", b64(append(bytes.Clone(data), data...)), "token-malformed"},
		{"trailing byte", b64(append(bytes.Clone(data), 0)), "token-malformed"},
		{"truncated", b64(data[:len(data)-1]), "token-malformed"},
		{"short tag", edit(func(r *raw) { r.tag = r.tag[:31] }), "token-malformed"},
		{"longer varint", b64(longVarint), "token-malformed"},
		{"spare bits set", string(spare), "token-malformed"},
		{"padded", text + "=", "token-malformed"},
		{"line break inside", text[:40] + "\n" + text[40:], "token-malformed"},
		{"line break at end", text + "\r\n", "token-malformed"},
		{"space before", " " + text, "token-malformed"},
		{"standard alphabet", strings.ReplaceAll(strings.ReplaceAll(text, "-", "+"), "_", "/") + "+", "token-malformed"},
		{"scheme left on", "Bearer " + text, "token-malformed"},
		{"other location", other(rootKey, "elsewhere", ident), "token-malformed"},
		{"no location", other(rootKey, "", ident), "token-malformed"},
		{"identifier version", other(rootKey, capability.Location, "v3:"+ident[3:]), "token-malformed"},
		{"identifier of the first version", other(rootKey, capability.Location, "v1:"+rootID+":"+nonce), "token-malformed"},
		{"identifier without time", other(rootKey, capability.Location, "v2:"+rootID+":"+nonce), "token-malformed"},
		{"identifier time zero", other(rootKey, capability.Location, "v2:"+rootID+":0:"+nonce), "token-malformed"},
		{"identifier time with leading zero", other(rootKey, capability.Location, "v2:"+rootID+":01700000000:"+nonce), "token-malformed"},
		{"identifier time negative", other(rootKey, capability.Location, "v2:"+rootID+":-1:"+nonce), "token-malformed"},
		{"identifier time too late", other(rootKey, capability.Location, "v2:"+rootID+":253402300800:"+nonce), "token-malformed"},
		{"identifier capital root", other(rootKey, capability.Location, "v2:Demo:1700000000:"+nonce), "token-malformed"},
		{"identifier empty root", other(rootKey, capability.Location, "v2::1700000000:"+nonce), "token-malformed"},
		{"identifier long root", other(rootKey, capability.Location, "v2:"+strings.Repeat("a", 33)+":1700000000:"+nonce), "token-malformed"},
		{"identifier short nonce", other(rootKey, capability.Location, ident[:len(ident)-2]), "token-malformed"},
		{"identifier long nonce", other(rootKey, capability.Location, ident+"00"), "token-malformed"},
		{"identifier capital nonce", other(rootKey, capability.Location, "v2:"+rootID+":1700000000:"+strings.ToUpper(nonce)), "token-malformed"},
		{"identifier fourth field", other(rootKey, capability.Location, ident+":"), "token-malformed"},
		{"third-party caveat", edit(func(r *raw) {
			r.links = append(r.links, link{[]byte("elsewhere"), []byte("ask somebody"), bytes.Repeat([]byte{7}, 72)})
		}), "token-malformed"},
		{"empty verification id", edit(func(r *raw) { r.links[0].verification = []byte{} }), "token-malformed"},
		{"caveat location", edit(func(r *raw) { r.links[0].location = []byte("x") }), "token-malformed"},
		{"33 caveats", with(repeat(expA, 30)...), "token-malformed"},
		{"4098 bytes", sized(3073), "token-malformed"},

		{"tag changed", edit(func(r *raw) { r.tag[31] ^= 1 }), "token-signature"},
		{"tag zero", edit(func(r *raw) { r.tag = make([]byte, 32) }), "token-signature"},
		{"caveat removed", edit(func(r *raw) { r.links = r.links[:2] }), "token-signature"},
		{"caveat added without tag", edit(func(r *raw) { r.links = append(r.links, link{id: []byte("scope=kms:sign")}) }), "token-signature"},
		{"caveat changed", edit(func(r *raw) { r.links[0].id = []byte("tenant=evil") }), "token-signature"},
		{"caveats swapped", edit(func(r *raw) { r.links[0], r.links[1] = r.links[1], r.links[0] }), "token-signature"},
		{"nonce changed", edit(func(r *raw) { r.identifier = ident[:len(ident)-1] + "0" }), "token-signature"},
		{"other root key", other(bytes.Repeat([]byte{7}, 32), capability.Location, ident), "token-signature"},
		{"unknown root key", other(rootKey, capability.Location, "v2:other:1700000000:"+nonce), "token-signature"},
		{"unknown caveat, forged", edit(func(r *raw) { r.links[0].id = []byte("new=1") }), "token-signature"},

		{"no tenant", forge(scopeA, expA), "caveat-missing"},
		{"no exp", forge(tenantA, scopeA), "caveat-missing"},
		{"no scope", forge(tenantA, expA), "caveat-missing"},
		{"no caveat", forge(), "caveat-missing"},
	}
	unknown, malformed := badCaveats()
	for _, c := range unknown {
		cases = append(cases, refusalCase{fmt.Sprintf("caveat %q", c), with(c), "caveat-unknown"})
	}
	for _, c := range malformed {
		name := c
		if len(name) > 80 {
			name = name[:80]
		}
		cases = append(cases, refusalCase{fmt.Sprintf("caveat %q", name), with(c), "caveat-malformed"})
	}
	return cases
}

// goodCaveats are each kind at its edges.
func goodCaveats() []string {
	return []string{
		"tenant=a", "tenant=" + strings.Repeat("a", 255), "tenant=service_node:alpha", "scope=kms:sign", scopeA,
		"exp=1", "exp=253402300799", "nbf=1", "nbf=253402300799",
		"kid-prefix=acme", "kid-prefix=acme/audit/ed25519+ml-dsa-65/" + uuidA + "#v4294967295", "purpose-prefix=audit:eu",
		"aud=x", "aud=https://kms.example:9446", "aud=a=b,c#d", "aud=" + strings.Repeat("~", 255), "aud=!",
		"client-key=" + digestA, "payload-b3=" + digestB, "payload-b3=" + strings.Repeat("0", 64),
		"peer-uid=0", "peer-uid=1000", "peer-uid=4294967294",
		"verb=sign", "verb=sign,sign_batch,verify", "verb=a", "verb=v2", "verb=" + strings.Repeat("a", 32),
		"alg=ed25519", "alg=ed25519,ed25519+ml-dsa-65,ml-dsa-65", "alg=" + strings.Repeat("a", 64),
		"max-bytes=1", "max-bytes=1073741824", "rate=1/1", "rate=1000000/1000000", "rate=10/20",
	}
}

// badCaveats are texts that are no caveats: with a name that is not in the
// list, and with a value that is not in its one spelling.
func badCaveats() (unknown, malformed []string) {
	kids := "kid-prefix="
	unknown = []string{"ip=127.0.0.1", "Tenant=acme", " tenant=acme", "tenant =acme", "=", "=acme", "kid=acme", "exp\x00=1900000000", "Rate=1/1", "client_key=" + digestA, "iat=1"}
	malformed = []string{
		"", "tenant", "\xff\xfe",
		"tenant=", "tenant=acme ", "tenant=acme\n", "tenant=a::b", "tenant=acme:", "tenant=:acme", "tenant=.acme", "tenant=a/b", "tenant=..",
		"tenant=acme%2F", "tenant=аcme", "tenant=a\x00", "tenant=" + strings.Repeat("a", 256), "tenant=acme=acme",
		"scope=", "scope=kms:sign,", "scope=,kms:sign", "scope=kms:sign,kms:sign", "scope=kms:verify,kms:sign", "scope=kms:read,kms:sign,kms:read",
		"scope=kms:sign, kms:verify", "scope=sign", "scope=kms:SIGN", "scope=kms:*", "scope=*", "scope=kms:sign;kms:verify", "scope=kms:admin",
		"exp=", "exp=0", "exp=01900000000", "exp=+1900000000", "exp=-1", "exp=1.9e9", "exp=1900000000 ", "exp=0x70000000", "exp=1_900_000_000",
		"exp=253402300800", "exp=9223372036854775808", "exp=18446744073709551617", "exp=2030-01-01T00:00:00Z", "exp=١",
		"nbf=", "nbf=0", "nbf=-1", "nbf=09", "nbf=253402300800",
		kids, kids + "/", kids + "acme/", kids + "/acme", kids + "acme//ed25519", kids + "acme/../evil", kids + "acme/*", kids + "acme*",
		kids + "acme/audit/Ed25519", kids + "acme/audit/ed25519/", kids + "acme/audit/ed25519/0197", kids + "acme/audit/ed25519/" + strings.ToUpper(uuidA),
		kids + "acme#v1", kids + "acme/audit/ed25519#v1", kids + "acme/audit/ed25519/" + uuidA + "/x", kids + "acme/audit/ed25519/" + uuidA + "#",
		kids + "acme/audit/ed25519/" + uuidA + "#v0", kids + "acme/audit/ed25519/" + uuidA + "#v01", kids + "acme/audit/ed25519/" + uuidA + "#3",
		kids + "acme/audit/ed25519/" + uuidA + "#v4294967296", kids + "acme/audit/ed25519/" + uuidA + "@v1", kids + "acme/audit/ed25519/" + uuidA + "#v1#v1",
		kids + "acme/audit/ed25519/" + strings.ReplaceAll(uuidA, "-", "0"), kids + "acme/audit/+ed25519", kids + "acme/audit/" + strings.Repeat("a", 65),
		"purpose-prefix=", "purpose-prefix=audit:", "purpose-prefix=audit/", "purpose-prefix=audit*", "purpose-prefix=a::b",

		"aud=", "aud= ", "aud=a b", "aud=a\n", "aud=\x7f", "aud=é", "aud=" + strings.Repeat("a", 256),
		"client-key=", "client-key=" + digestA[:63], "client-key=" + digestA + "0", "client-key=" + strings.ToUpper(digestA), "client-key=sha256:" + digestA,
		"payload-b3=", "payload-b3=" + digestB[:62], "payload-b3=" + digestB + "00", "payload-b3=" + strings.ToUpper(digestB), "payload-b3=" + digestB[:63] + "g",
		"peer-uid=", "peer-uid=-1", "peer-uid=+0", "peer-uid=00", "peer-uid=01000", "peer-uid=4294967295", "peer-uid=18446744073709551616", "peer-uid=root", "peer-uid=1 ",
		"verb=", "verb=Sign", "verb=sign,", "verb=,sign", "verb=sign,sign", "verb=verify,sign", "verb=sign, verify", "verb=_a", "verb=2a", "verb=sign-batch", "verb=*", "verb=" + strings.Repeat("a", 33),
		"alg=", "alg=Ed25519", "alg=ed25519,", "alg=ml-dsa-65,ed25519", "alg=ed25519,ed25519", "alg=ed25519 ", "alg=+a", "alg=*", "alg=" + strings.Repeat("a", 65),
		"max-bytes=", "max-bytes=0", "max-bytes=-1", "max-bytes=01", "max-bytes=1k", "max-bytes=1073741825", "max-bytes=1.5",
		"rate=", "rate=10", "rate=10/", "rate=/10", "rate=0/1", "rate=1/0", "rate=1/1/1", "rate=01/1", "rate=1/01", "rate=1000001/1", "rate=1/1000001", "rate=1.5/2", "rate=-1/1", "rate=1 /1", "rate=4294967297/1",
	}
	return unknown, malformed
}

func repeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

// sized makes an authentic token of n binary bytes, n from 3000.
func sized(n int) string {
	caveats := []string{tenantA, scopeA, expA}
	for {
		t, _ := chain(rootKey, capability.Location, ident, caveats...)
		switch left := n - len(t.bytes()); {
		case left == 0:
			return t.text()
		case left > 500:
			caveats = append(caveats, "tenant="+strings.Repeat("a", 200))
		case left > 255:
			caveats = append(caveats, "tenant="+strings.Repeat("a", 110))
		default: // a caveat takes its text and 3 bytes, 4 from 128 on
			over := 3
			if left-over > 127 {
				over = 4
			}
			caveats = append(caveats, "tenant="+strings.Repeat("a", left-over-len("tenant=")))
		}
	}
}

func caveat(t testing.TB, text string) capability.Caveat {
	t.Helper()
	c, err := capability.ParseCaveat(text)
	if err != nil {
		t.Fatalf("caveat %q: %v", text, err)
	}
	return c
}

// reason is the reason of a refusal, "" for nil, and the text of any other
// error.
func reason(err error) string {
	var r *capability.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.Reason()
	}
	return err.Error()
}
