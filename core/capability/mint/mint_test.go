package mint

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
)

const rootID = "demo"

type ring map[string][]byte

func (r ring) Root(id string, use func([]byte)) error {
	key, ok := r[id]
	if !ok {
		return capability.ErrUnknownRoot
	}
	use(key)
	return nil
}

func with(key []byte) func(func([]byte)) error {
	return func(use func([]byte)) error { use(key); return nil }
}

func caveats(t *testing.T, texts ...string) []capability.Caveat {
	t.Helper()
	out := make([]capability.Caveat, len(texts))
	for i, text := range texts {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			t.Fatalf("caveat %q: %v", text, err)
		}
		out[i] = c
	}
	return out
}

// With the nonce of a vector, minting makes the vector.
func TestMintsVectors(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../docs/vectors/token.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		RootKeys map[string]string `json:"root_keys"`
		Tokens   []struct {
			Name      string   `json:"name"`
			RootKeyID string   `json:"root_key_id"`
			Issued    int64    `json:"issued"`
			Nonce     string   `json:"nonce"`
			Caveats   []string `json:"caveats"`
			Token     string   `json:"token"`
		} `json:"tokens"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Tokens) == 0 {
		t.Fatal("no vectors found")
	}
	for _, v := range f.Tokens {
		key, err := hex.DecodeString(f.RootKeys[v.RootKeyID])
		if err != nil || len(key) != capability.RootKeyBytes {
			t.Fatalf("%s: root key: %v", v.Name, err)
		}
		var nonce [16]byte
		if n, err := hex.Decode(nonce[:], []byte(v.Nonce)); err != nil || n != len(nonce) {
			t.Fatalf("%s: nonce: %v", v.Name, err)
		}
		token, err := newWith(time.Unix(v.Issued, 0), nonce, v.RootKeyID, with(key), caveats(t, v.Caveats...))
		if err != nil || token != v.Token {
			t.Errorf("%s: minted another token: %v", v.Name, err)
		}
	}
}

// A minted token verifies under its key and no other, and no two are alike.
func TestNew(t *testing.T) {
	t.Parallel()
	key := make([]byte, 32)
	key[0] = 1
	list := caveats(t, "tenant=acme", "scope=kms:sign", "exp=1900000000")
	one, err := New(rootID, with(key), list...)
	if err != nil {
		t.Fatal(err)
	}
	two, err := New(rootID, with(key), list...)
	if err != nil {
		t.Fatal(err)
	}
	v := capability.NewVerifier(ring{rootID: key})
	g1, err := v.Verify(one)
	if err != nil {
		t.Fatal(err)
	}
	g2, err := v.Verify(two)
	if err != nil {
		t.Fatal(err)
	}
	if one == two || g1.ID() == g2.ID() {
		t.Error("two tokens are alike")
	}
	if _, err := g1.Clear(capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: time.Unix(1750000000, 0)}); err != nil {
		t.Errorf("clear: %v", err)
	}
	if _, err := capability.NewVerifier(ring{rootID: make([]byte, 32)}).Verify(one); !errors.Is(err, capability.ErrInvalid) {
		t.Errorf("other key: %v", err)
	}
}

// Nothing leaves that could not be verified, and a refusal tells no key.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef0123456789abcdef")
	good := []string{"tenant=acme", "scope=kms:sign", "exp=1900000000"}
	sealed := errors.New("sealed")
	long := make([]string, 0, 18)
	for range 15 {
		long = append(long, "tenant="+strings.Repeat("a", 255))
	}
	many := append([]string(nil), good...)
	for len(many) < 33 {
		many = append(many, good[0])
	}
	for _, c := range []struct {
		name    string
		rootID  string
		use     func(func([]byte)) error
		caveats []capability.Caveat
		says    string
	}{
		{"no tenant", rootID, with(key), caveats(t, good[1], good[2]), "caveat-missing"},
		{"no scope", rootID, with(key), caveats(t, good[0], good[2]), "caveat-missing"},
		{"no exp", rootID, with(key), caveats(t, good[0], good[1]), "caveat-missing"},
		{"no caveat", rootID, with(key), nil, "caveat-missing"},
		{"zero caveat", rootID, with(key), append(caveats(t, good...), capability.Caveat{}), "caveat-malformed"},
		{"33 caveats", rootID, with(key), caveats(t, many...), "token-malformed"},
		{"too long", rootID, with(key), caveats(t, append(long, good...)...), "token-malformed"},
		{"empty root id", "", with(key), caveats(t, good...), "root key id"},
		{"capital root id", "Demo", with(key), caveats(t, good...), "root key id"},
		{"colon in root id", "a:b", with(key), caveats(t, good...), "root key id"},
		{"long root id", strings.Repeat("a", 33), with(key), caveats(t, good...), "root key id"},
		{"short key", rootID, with(key[:31]), caveats(t, good...), "32 bytes"},
		{"long key", rootID, with(append(key, 'x')), caveats(t, good...), "32 bytes"},
		{"no key", rootID, func(func([]byte)) error { return nil }, caveats(t, good...), "not given"},
		{"sealed", rootID, func(func([]byte)) error { return sealed }, caveats(t, good...), "sealed"},
		{"error after use", rootID, func(use func([]byte)) error { use(key); return sealed }, caveats(t, good...), "sealed"},
	} {
		token, err := New(c.rootID, c.use, c.caveats...)
		if err == nil || token != "" || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q %v", c.name, token, err)
		} else if strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%s: error tells the key", c.name)
		}
	}
}
