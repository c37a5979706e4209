package core

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// amnesia opens an engine in memory, with a session.
func amnesia(t *testing.T) (*KMS, *Session) {
	t.Helper()
	cfg := config.Default()
	cfg.Backend, cfg.ArenaSize = config.BackendInmem, 1<<20
	return crashOpen(t, cfg)
}

// seedOf opens the sealed seed of one track of a key, as its custodian does. It
// stays in the arena; the caller destroys it.
func seedOf(t *testing.T, k *KMS, tr *track) *secret.Bytes {
	t.Helper()
	seal, err := k.vault.StoreKey("ron-kms/v1/seal", 32)
	if err != nil {
		t.Fatal(err)
	}
	defer seal.Destroy()
	lp := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	aad := lp(lp([]byte("ron-kms/key/v1\x00"), tr.ref.KID.String()), tr.ref.Track)
	seed, err := seal.Unseal(k.vault.Arena(), tr.sealed, aad)
	if err != nil {
		t.Fatalf("%s: %v", tr.ref.Track, err)
	}
	return seed
}

// Signatures that lax verifiers take and strict ones do not get one answer,
// alone and in a batch: an R of small order that satisfies the equation, S + L,
// and encodings that are not canonical. D-12, R-403.
func TestStrictEd25519(t *testing.T) {
	t.Parallel()
	k, s := amnesia(t)
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519", Scheme: api.SchemeRaw})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	parsed, _ := api.ParseKID(kid)
	tr := &k.keys.get(parsed).versions[1].tracks[0]
	public := tr.public.Bytes()
	msg := []byte("message")
	r, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB64: api.FormatBase64(msg)})
	if err != nil {
		t.Fatal(err)
	}
	honest, _ := api.ParseBase64(r.(*api.SignResponse).Sigs[0].SignatureB64)

	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	scalar := func(le []byte) *big.Int {
		be := bytes.Clone(le)
		slices.Reverse(be)
		return new(big.Int).SetBytes(be)
	}
	encode := func(n *big.Int) []byte {
		b := n.FillBytes(make([]byte, 32))
		slices.Reverse(b)
		return b
	}
	// R is the identity and S = H(R, A, M)·a: RFC 8032 takes it.
	identity := append([]byte{1}, make([]byte, 31)...)
	var private [64]byte
	seed := seedOf(t, k, tr)
	defer seed.Destroy()
	if err := seed.Use(func(p []byte) { private = sha512.Sum512(p) }); err != nil {
		t.Fatal(err)
	}
	private[0] &= 248
	private[31] = private[31]&127 | 64
	hram := sha512.Sum512(slices.Concat(identity, public, msg))
	small := append(bytes.Clone(identity), encode(new(big.Int).Mod(new(big.Int).Mul(scalar(hram[:]), scalar(private[:32])), order))...)
	if !ed25519.Verify(public, msg, small) {
		t.Fatal("the signature with R = identity was not made rightly")
	}
	larger := slices.Concat(honest[:32], encode(new(big.Int).Add(scalar(honest[32:]), order)))
	signBit := bytes.Clone(small)
	signBit[31] |= 0x80
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	notCanonical := slices.Concat(encode(new(big.Int).Add(p, big.NewInt(1))), small[32:]) // the identity again
	corpus := []struct {
		what string
		sig  []byte
		want bool
	}{
		{"honest", honest, true},
		{"R of small order", small, false},
		{"S + L", larger, false},
		{"R not canonical, x = 0 with the sign bit", signBit, false},
		{"R not canonical, y = p + 1", notCanonical, false},
		{"S = 0", slices.Concat(honest[:32], make([]byte, 32)), false},
		{"all zero", make([]byte, 64), false},
		{"all ones", bytes.Repeat([]byte{0xff}, 64), false},
		{"cut", honest[:63], false},
		{"honest again", honest, true},
	}
	batch := &api.VerifyBatchRequest{}
	for _, c := range corpus {
		req := api.VerifyRequest{PayloadB64: api.FormatBase64(msg), Sigs: []api.Signature{{KID: kid, Alg: "ed25519", SignatureB64: api.FormatBase64(c.sig)}}}
		batch.Items = append(batch.Items, req)
		got, err := crashDo(k, s, "verify", &req)
		if err != nil || got.(*api.VerifyResponse).OK != c.want {
			t.Errorf("%s: %+v, %v, want %t", c.what, got, err, c.want)
		}
	}
	got, err := crashDo(k, s, "verify_batch", batch)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range corpus {
		if r := got.(*api.VerifyBatchResponse).Results[i]; r.OK != c.want || r.Error != nil {
			t.Errorf("%s, in a batch: %+v, want %t", c.what, r, c.want)
		}
	}
}

// An engine whose cryptography gives wrong answers does not open. R-140.
func TestSelfTestRefusesToOpen(t *testing.T) { // not parallel: it changes a variable of the package
	genuine := selfTest
	defer func() { selfTest = genuine }()
	selfTest = func() error { return errors.New("a known answer is wrong") }
	cfg := config.Default()
	cfg.Backend, cfg.ArenaSize = config.BackendInmem, 1<<20
	if k, err := Open(context.Background(), cfg, Options{}); !api.HasReason(err, api.ReasonInternal) || k != nil {
		t.Errorf("opened: %v", err)
		if err == nil {
			k.Close()
		}
	}
}

// during calls a hook within the first use of a tenant's private key.
type during struct {
	backends.Backend
	hook func()
}

func (b *during) Sign(ctx context.Context, ref backends.Ref, scheme alg.Scheme, sealed, msg []byte) ([]byte, error) {
	if ref.KID.Tenant == "acme" {
		b.hook()
	}
	return b.Backend.Sign(ctx, ref, scheme, sealed, msg)
}

func (b *during) Wrap(ctx context.Context, ref backends.Ref, sealed, aad, plaintext []byte) ([]byte, error) {
	b.hook()
	return b.Backend.Wrap(ctx, ref, sealed, aad, plaintext)
}

func (b *during) Unwrap(ctx context.Context, ref backends.Ref, sealed, aad []byte, e alg.Envelope, use func([]byte)) error {
	b.hook()
	return b.Backend.Unwrap(ctx, ref, sealed, aad, e, use)
}

// A key destroyed in the middle of a batch, a wrap or an unwrap: the operation
// counts as done before, and nothing of the key stays in memory after it. R-011.
func TestDestroyInsideUse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ verb, alg string }{
		{"sign", "hybrid"}, {"sign_batch", "hybrid"}, {"wrap", "aes-256-gcm"}, {"unwrap", "aes-256-gcm"},
		{"unwrap", "ml-kem-768"}, {"rewrap", "chacha20-poly1305"},
	} {
		k, s := amnesia(t)
		made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: c.alg})
		if err != nil {
			t.Fatal(err)
		}
		kid := strings.TrimSuffix(made.(*api.CreateResponse).KID, "#v1")
		envelope := ""
		if strings.HasSuffix(c.verb, "wrap") {
			w, err := crashDo(k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32})
			if err != nil {
				t.Fatal(err)
			}
			envelope = w.(*api.WrapResponse).WrappedB64
		}
		parsed, _ := api.ParseKID(kid)
		for i := range k.keys.get(parsed).versions[1].tracks {
			k.vault.Forget(k.keys.get(parsed).versions[1].tracks[i].ref)
		}
		idle := k.vault.Arena().Stats().Slots
		called := false
		k.vault.Backend = &during{Backend: k.vault.Backend, hook: func() {
			if !called {
				called = true
				if _, err := crashDo(k, s, "destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: kid}); err != nil {
					t.Error(err)
				}
			}
		}}
		req := map[string]api.Request{
			"sign":       &api.SignRequest{KID: kid, PayloadB3: digest1},
			"sign_batch": &api.SignBatchRequest{KID: kid, Items: []api.SignItem{{PayloadB3: digest1}, {PayloadB3: digest1}}},
			"wrap":       &api.WrapRequest{KID: kid, Size: 32},
			"unwrap":     &api.UnwrapRequest{KID: kid, WrappedB64: envelope},
			"rewrap":     &api.RewrapRequest{KID: kid, WrappedB64: envelope},
		}[c.verb]
		if _, err := crashDo(k, s, c.verb, req); err != nil {
			t.Errorf("%s: %v", c.verb, err)
		}
		if got := k.vault.Arena().Stats().Slots; !called || got != idle {
			t.Errorf("%s with %s: %d private parts of a destroyed key are in memory (destroyed inside: %t)", c.verb, c.alg, got-idle, called)
		}
		if _, err := crashDo(k, s, c.verb, req); !api.HasReason(err, api.ReasonDestroyed) {
			t.Errorf("%s with a destroyed key: %v", c.verb, err)
		}
	}
}

// canary is a piece of a secret, changed so that it does not look like it.
type canary struct {
	name  string
	bytes [24]byte
}

const canaryMask = 0xa7

// canaries are pieces of secrets that must be nowhere but in the arena.
type canaries struct {
	arena uintptr // an address in the arena
	all   []canary
}

// add takes the beginning of each secret of a slot, or of what a slot lent.
func (c *canaries) add(name string, p []byte) {
	x := canary{name: name}
	for i := range x.bytes {
		x.bytes[i] = p[i] ^ canaryMask
	}
	c.all = append(c.all, x)
}

func (c *canaries) slot(t *testing.T, name string, b *secret.Bytes, from int) {
	t.Helper()
	if err := b.Use(func(p []byte) {
		c.arena = uintptr(unsafe.Pointer(&p[0]))
		c.add(name, p[from:])
	}); err != nil {
		t.Fatal(err)
	}
}

// find counts, in the writable memory of this process but for the arena's
// mapping, how often each canary occurs.
func (c *canaries) find(t *testing.T) map[string]int {
	t.Helper()
	found := make(map[string]int)
	var first [1 << 16][]int // by the first two bytes
	for i, x := range c.all {
		at := uint16(x.bytes[0]^canaryMask)<<8 | uint16(x.bytes[1]^canaryMask)
		first[at] = append(first[at], i)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skip(err)
	}
	defer mem.Close()
	buf, scanned := make([]byte, 1<<20), 0
	defer clear(buf)
	for sc := bufio.NewScanner(maps); sc.Scan(); {
		var lo, hi uintptr
		var perm string
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x %s", &lo, &hi, &perm); n != 3 || !strings.HasPrefix(perm, "rw") || lo <= c.arena && c.arena < hi {
			continue
		}
		const overlap = len(canary{}.bytes)
		for at := lo; at < hi; at += uintptr(len(buf) - overlap) {
			n, _ := mem.ReadAt(buf[:min(len(buf), int(hi-at))], int64(at)) // pages may be missing
			scanned += n
			for i := 0; i+overlap <= n; i++ {
				for _, x := range first[uint16(buf[i])<<8|uint16(buf[i+1])] {
					j := 0
					for j < overlap && buf[i+j]^canaryMask == c.all[x].bytes[j] {
						j++
					}
					if j == overlap {
						found[c.all[x].name]++
					}
				}
			}
			if hi-at <= uintptr(len(buf)) {
				break
			}
		}
	}
	if scanned < 1<<20 {
		t.Fatalf("scanned %d bytes only", scanned)
	}
	return found
}

// After every operation of an engine, no copy of a seed, of an expanded private
// key, of a derived key or of a data key that was not asked for is left outside
// the arena, in builds that erase (see secret.Do). Data keys that a wrap or an
// unwrap returns do leave, in the answer: they are the caller's.,
// D-23.
func TestNoCopiesOutsideTheArena(t *testing.T) { // not parallel: it reads the whole memory
	if !secret.Enabled() {
		t.Skip("this build does not erase (GOEXPERIMENT=runtimesecret is off): what cryptography leaves on stack and heap " +
			"may stay there until that memory is used again, and nothing is checked")
	}
	k, s := amnesia(t)
	do := func(verb string, req api.Request) any {
		t.Helper()
		r, err := crashDo(k, s, verb, req)
		if err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		return r
	}
	c := new(canaries)
	watch := func(kid string) {
		t.Helper()
		parsed, err := api.ParseKID(kid)
		if err != nil {
			t.Fatal(err)
		}
		v := k.keys.get(parsed).versions[parsed.Version]
		for i := range v.tracks {
			tr := &v.tracks[i]
			seed := seedOf(t, k, tr)
			c.slot(t, kid+" "+tr.Name()+" seed", seed, 0)
			if tr.SeedSize() == 64 {
				c.slot(t, kid+" "+tr.Name()+" seed, second half", seed, 32)
			}
			if strings.HasPrefix(tr.Name(), "ml-dsa-") { // K, FIPS 204 Algorithm 6
				expanded, err := tr.Expand(k.vault.Arena(), seed)
				if err != nil {
					t.Fatal(err)
				}
				c.slot(t, kid+" "+tr.Name()+" K", expanded, 32)
				expanded.Destroy()
			}
			seed.Destroy()
		}
	}
	rotate := func(kid string) string {
		return do("rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid}).(*api.RotateResponse).KID
	}
	use := func(kid string, a *alg.Alg) {
		t.Helper()
		switch a.Kind() {
		case alg.KindSign:
			sigs := do("sign", &api.SignRequest{KID: kid, PayloadB3: digest1}).(*api.SignResponse).Sigs
			do("sign_batch", &api.SignBatchRequest{KID: kid, Items: []api.SignItem{{PayloadB3: digest1}, {PayloadB3: digest1}}})
			do("verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: sigs})
		case alg.KindKEM, alg.KindAEAD:
			w := do("wrap", &api.WrapRequest{KID: kid, Size: 32, OmitPlaintext: true}).(*api.WrapResponse)
			w2 := do("rewrap", &api.RewrapRequest{KID: kid, WrappedB64: w.WrappedB64}).(*api.RewrapResponse)
			raw, _ := api.ParseBase64(w2.WrappedB64)
			e, err := alg.ParseEnvelope(raw)
			if err != nil {
				t.Fatal(err)
			}
			parsed, _ := api.ParseKID(e.KID)
			tr := &k.keys.get(parsed).versions[parsed.Version].tracks[0]
			bound, err := alg.EnvelopeAAD("acme", e.KID, e.Alg, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.vault.Unwrap(context.Background(), tr.ref, tr.sealed, bound, e, func(p []byte) { c.add(e.KID+" data key", p) }); err != nil {
				t.Fatal(err)
			}
			if _, err := crashDo(k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: w2.WrappedB64, AADB64: "AAAA"}); !api.HasReason(err, api.ReasonUnwrap) {
				t.Errorf("unwrap: %v", err)
			}
		case alg.KindKDF:
			for _, child := range []string{"ed25519", "ml-dsa-65", "x25519", "aes-256-gcm", "hkdf-sha256"} {
				d := do("derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: kid, Context: "ctx." + child, Alg: child}).(*api.DeriveResponse)
				watch(d.KID)
			}
		}
	}
	for _, a := range alg.All() {
		made := do("create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: a.Name()}).(*api.CreateResponse)
		watch(made.KID)
		for range 3 {
			use(made.KID, a)
		}
		next := rotate(made.KID)
		watch(next)
		use(next, a)
		if a.Kind() != alg.KindKDF {
			do("destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: strings.TrimSuffix(made.KID, "#v1")})
		}
	}
	runtime.GC()
	runtime.GC()
	for name, n := range c.find(t) {
		t.Errorf("%s: %d copies", name, n)
	}
	if len(c.all) < 60 {
		t.Errorf("%d secrets were looked for", len(c.all))
	}
	// The search finds a copy where there is one.
	planted := make([]byte, len(canary{}.bytes))
	for i := range planted {
		planted[i] = c.all[0].bytes[i] ^ canaryMask
	}
	if c.find(t)[c.all[0].name] == 0 {
		t.Error("the planted copy was not found")
	}
	secret.Wipe(planted)
}
