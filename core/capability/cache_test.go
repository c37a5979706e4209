package capability

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/macaroon.v2"
)

// counting is a verifier that counts its calls.
type counting struct {
	TokenVerifier
	mu    sync.Mutex
	calls int
}

func (c *counting) Verify(text string) (*Grant, error) {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	return c.TokenVerifier.Verify(text)
}

// ringOf is the root keys of these tests, with a list of revocations.
type ringOf struct {
	key []byte
	*RevocationList
}

func (r ringOf) Root(id string, use func([]byte)) error {
	if id != "demo" {
		return ErrUnknownRoot
	}
	use(r.key)
	return nil
}

type cacheRig struct {
	*Cache
	verifier *counting
	now      time.Time
	list     *RevocationList
	revoked  string
}

func newCacheRig(t *testing.T, size int) *cacheRig {
	t.Helper()
	r := &cacheRig{now: time.Unix(1750000000, 0), revoked: revocationsHeader + "\n"}
	list, err := NewRevocationList(func() ([]byte, error) { return []byte(r.revoked), nil })
	if err != nil {
		t.Fatal(err)
	}
	r.list = list
	r.verifier = &counting{TokenVerifier: NewVerifier(ringOf{make([]byte, 32), list})}
	r.Cache = NewCache(r.verifier, CacheOptions{Size: size, Clock: func() time.Time { return r.now }})
	return r
}

// made mints the n-th token of the test.
func made(t *testing.T, n int, caveats ...string) string {
	t.Helper()
	m, err := macaroon.New(make([]byte, 32), fmt.Appendf(nil, "v2:demo:1700000000:%032x", n), Location, macaroon.V2)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append([]string{"tenant=acme", "scope=kms:sign", "exp=1750000030"}, caveats...) {
		if err := m.AddFirstPartyCaveat([]byte(c)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := encodeToken(m)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// verifies asks the cache and checks whether it had to verify.
func (r *cacheRig) verifies(t *testing.T, what, text string, want bool) *Grant {
	t.Helper()
	before := r.verifier.calls
	g, err := r.Verify(text)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if did := r.verifier.calls != before; did != want {
		t.Errorf("%s: verified %t, want %t", what, did, want)
	}
	return g
}

// A token is verified once, and again when its time in the cache is over.
func TestCacheTime(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 0)
	text := made(t, 1, "exp=1750003600") // the earlier exp counts
	long := made(t, 2)
	first := r.verifies(t, "first", text, true)
	if again := r.verifies(t, "again", text, false); again != first {
		t.Error("another grant")
	}
	r.now = r.now.Add(29 * time.Second)
	r.verifies(t, "before expiry", text, false)
	r.verifies(t, "another token", long, true)
	r.now = r.now.Add(time.Second)
	r.verifies(t, "at expiry", text, true)
	r.now = r.now.Add(-time.Hour)
	r.verifies(t, "clock back", text, true)
	r.verifies(t, "clock back again", text, false)
	if s := r.Stats(); s.Hits != 3 || s.Misses != 4 || s.Size != 2 {
		t.Errorf("stats %+v", s)
	}

	m := newCacheRig(t, 0)
	forever := &Grant{id: "cap:x", expiry: maxSeconds, conditions: []condition{{num: maxSeconds}}}
	m.verifier.TokenVerifier = fixed{forever}
	m.verifies(t, "first", "token", true)
	m.now = m.now.Add(MaxCacheTTL - time.Nanosecond)
	m.verifies(t, "before its time is over", "token", false)
	m.now = m.now.Add(time.Nanosecond)
	m.verifies(t, "when its time is over", "token", true)
	for _, ttl := range []time.Duration{-1, 0, time.Hour} {
		if c := NewCache(m.verifier, CacheOptions{TTL: ttl}); c.ttl != MaxCacheTTL {
			t.Errorf("ttl %v became %v", ttl, c.ttl)
		}
	}
}

type fixed struct{ g *Grant }

func (f fixed) Verify(string) (*Grant, error) { return f.g, nil }

// Any revocation empties the cache in effect, and a revoked token is refused
// at once.
func TestCacheRevocation(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 0)
	one, two := made(t, 1), made(t, 2)
	g := r.verifies(t, "first", one, true)
	r.verifies(t, "second", two, true)
	r.revoked += "token " + g.ID() + "\n"
	if err := r.list.Reload(); err != nil {
		t.Fatal(err)
	}
	var refusal *Refusal
	if _, err := r.Verify(one); !errors.As(err, &refusal) || refusal.Reason() != ReasonTokenRevoked {
		t.Errorf("revoked: %v", err)
	}
	r.verifies(t, "the other", two, true)
	r.verifies(t, "the other again", two, false)
	// Nor does clearing meanwhile make an old entry good.
	r.revoked = revocationsHeader + "\n"
	if err := r.list.Reload(); err != nil {
		t.Fatal(err)
	}
	r.verifies(t, "after the next change", two, true)
	r.Clear()
	r.verifies(t, "after Clear", two, true)
}

// The cache holds as many as it may; the least recently used goes.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 3)
	for n := range 3 {
		r.verifies(t, "new", made(t, n), true)
	}
	r.verifies(t, "used", made(t, 0), false)
	r.verifies(t, "fourth", made(t, 3), true)
	r.verifies(t, "kept", made(t, 0), false)
	r.verifies(t, "dropped", made(t, 1), true)
	for n := range 100 {
		r.verifies(t, "many", made(t, 100+n), true)
		if len(r.entries) > 3 || r.order.Len() != len(r.entries) {
			t.Fatalf("%d entries", len(r.entries))
		}
	}
}

// What is refused is refused each time, and leaves nothing.
func TestCacheRefusals(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 0)
	good := made(t, 1)
	r.verifies(t, "good", good, true)
	for _, bad := range []string{"", "x", good + "=", good[:len(good)-1] + "_", strings.Repeat("A", 1<<20)} {
		for range 2 {
			if g, err := r.Verify(bad); g != nil || !errors.Is(err, ErrInvalid) {
				t.Errorf("%.20q: %v", bad, err)
			}
		}
	}
	if len(r.entries) != 1 {
		t.Errorf("%d entries", len(r.entries))
	}
}

// Nothing that the cache holds tells a token: not its text, not its tag, and
// not the hash that anybody could make of it. R-504
func TestCacheHoldsNoToken(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 0)
	text := made(t, 1, "kid-prefix=acme/canary", "nbf=1700000000")
	r.verifies(t, "first", text, true)
	r.verifies(t, "again", text, false)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"tag": raw[len(raw)-16:], "end of text": []byte(text[len(text)-16:]), "middle of text": []byte(text[100:116]), "identifier": raw[20:36]}
	var seen []byte
	h := r.hashers.Get().(*hasher)
	r.hashers.Put(h)
	for _, root := range []any{r.Cache, h} {
		seen = append(seen, memory(reflect.ValueOf(root), map[uintptr]bool{}, 0)...)
	}
	if !bytes.Contains(seen, []byte("acme/canary")) {
		t.Fatal("the search does not find what is there")
	}
	for name, secret := range secrets {
		if bytes.Contains(seen, secret) {
			t.Errorf("the cache holds the token's %s", name)
		}
	}
	if NewCache(r.verifier, CacheOptions{}).name(text) == r.name(text) {
		t.Error("two caches know a token by the same name")
	}
	first, again := r.name(text), r.name(text)
	if first != again || first == r.name(text[1:]) || r.name(strings.Repeat("a", 256)) == r.name(strings.Repeat("a", 257)) {
		t.Error("the name is not that of the text")
	}
}

// memory collects all bytes that can be reached from v: strings, slices and
// arrays of bytes, whatever they are part of.
func memory(v reflect.Value, seen map[uintptr]bool, depth int) (out []byte) {
	if depth > 40 || !v.IsValid() {
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return nil
		}
		seen[v.Pointer()] = true
		return memory(v.Elem(), seen, depth+1)
	case reflect.Interface:
		return memory(v.Elem(), seen, depth+1)
	case reflect.String:
		return append([]byte(v.String()), 0)
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			for i := range v.Len() {
				out = append(out, byte(v.Index(i).Uint()))
			}
			return append(out, 0)
		}
		for i := range v.Len() {
			out = append(out, memory(v.Index(i), seen, depth+1)...)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			out = append(out, memory(v.Field(i), seen, depth+1)...)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			out = append(out, memory(it.Key(), seen, depth+1)...)
			out = append(out, memory(it.Value(), seen, depth+1)...)
		}
	}
	return out
}

// One cache serves many goroutines; meant for -race.
func TestCacheConcurrently(t *testing.T) {
	t.Parallel()
	r := newCacheRig(t, 4)
	var tokens []string
	for n := range 8 {
		tokens = append(tokens, made(t, n))
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 200 {
				text := tokens[(n+i)%len(tokens)]
				g, err := r.Verify(text)
				if err != nil {
					t.Errorf("verify: %v", err)
				} else if info, _ := Inspect(text); g.ID() != info.ID {
					t.Error("the grant of another token")
				}
			}
		})
	}
	wg.Wait()
}

// A grant from memory costs no allocation.
func TestCacheHitDoesNotAllocate(t *testing.T) {
	r := newCacheRig(t, 0)
	text := made(t, 1)
	r.verifies(t, "first", text, true)
	n := testing.AllocsPerRun(200, func() { _, _ = r.Verify(text) })
	if n > 0.5 && !raceEnabled() { // the race detector makes sync.Pool forget at random
		t.Errorf("%v allocations", n)
	}
}

// raceEnabled tells whether sync.Pool forgets: it does under the race
// detector.
func raceEnabled() bool {
	made := 0
	p := sync.Pool{New: func() any { made++; return new(int) }}
	for range 100 {
		p.Put(p.Get())
	}
	return made > 10
}
