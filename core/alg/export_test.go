package alg

import (
	"crypto/cipher"
	"reflect"
	"slices"
	"sync"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/rustyonions/ron-kms/core/secret"
)

// SignDeterministic signs without hedging, which only known answers need.
func (t *Track) SignDeterministic(expanded *secret.Bytes, scheme Scheme, msg []byte) ([]byte, error) {
	return t.sign(expanded, scheme, msg, false)
}

// Faulty returns a track that works like t but flips a bit of each signature
// and of each plaintext it opens.
func Faulty(t *Track) *Track {
	f := *t
	switch p := t.primitive.(type) {
	case signer:
		f.primitive = faultySigner{p}
	case kem:
		f.primitive = faultyKEM{p}
	case aead:
		f.primitive = faultyAEAD{p}
	}
	return &f
}

type faultySigner struct{ signer }

func (f faultySigner) sign(sig, expanded, msg, ctx []byte, hedged bool) error {
	err := f.signer.sign(sig, expanded, msg, ctx, hedged)
	sig[0] ^= 1
	return err
}

type faultyKEM struct{ kem }

func (f faultyKEM) open(expanded, info, aad, enc, ct []byte) ([]byte, error) {
	plaintext, err := f.kem.open(expanded, info, aad, enc, ct)
	if err == nil {
		plaintext[0] ^= 1
	}
	return plaintext, err
}

// Deaf returns a track of KindKEM that opens nothing.
func Deaf(t *Track) *Track {
	d := *t
	d.primitive = deafKEM{t.primitive.(kem)}
	return &d
}

type deafKEM struct{ kem }

func (deafKEM) open(_, _, _, _, _ []byte) ([]byte, error) { return nil, ErrOpen }

type faultyAEAD struct{ aead }

func (f faultyAEAD) cipher(subkey []byte) (cipher.AEAD, error) {
	subkey = slices.Clone(subkey)
	subkey[0] ^= 1
	return f.aead.cipher(subkey)
}

// ReuseDetector sees every pair of subkey and nonce that the tracks made by
// Watch seal with, and counts those it has seen before.
type ReuseDetector struct {
	mu          sync.Mutex
	seen        map[string]bool
	Sealed      int
	Reused      int
	SubkeysSeen map[string]bool
}

func (d *ReuseDetector) saw(subkey, nonce string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen, d.SubkeysSeen = map[string]bool{}, map[string]bool{}
	}
	if d.seen[subkey+nonce] {
		d.Reused++
	}
	d.seen[subkey+nonce] = true
	d.SubkeysSeen[subkey] = true
	d.Sealed++
}

// Watch returns a track that works like t, of KindAEAD, under the eyes of d.
func (d *ReuseDetector) Watch(t *Track) *Track {
	w := *t
	w.primitive = watched{t.primitive.(aead), d}
	return &w
}

type watched struct {
	aead
	detector *ReuseDetector
}

func (w watched) cipher(subkey []byte) (cipher.AEAD, error) {
	c, err := w.aead.cipher(subkey)
	return watchedCipher{c, w.detector, string(subkey)}, err
}

type watchedCipher struct {
	cipher.AEAD
	detector *ReuseDetector
	subkey   string
}

func (w watchedCipher) Seal(dst, nonce, plaintext, aad []byte) []byte {
	out := w.AEAD.Seal(dst, nonce, plaintext, aad)
	w.detector.saw(w.subkey, string(out[len(dst):len(dst)+aeadNonce]))
	return out
}

// SelfTestWithout is the self-test with no answer for t.
func SelfTestWithout(t *Track) error {
	return selfTest(slices.DeleteFunc(slices.Clone(answers), func(a answer) bool { return a.track == t }))
}

// SelfTestFaulty is the self-test of a build in which t is faulty,
// SelfTestDigest and SelfTestSealed that with another answer for t.
func SelfTestFaulty(t *Track) error {
	return changedSelfTest(t, func(a *answer) { a.track = Faulty(t) })
}
func SelfTestDigest(t *Track) error { return changedSelfTest(t, func(a *answer) { a.digest = "00" }) }
func SelfTestSealed(t *Track) error {
	return changedSelfTest(t, func(a *answer) { a.sealed = "AAAA" + a.sealed[4:] })
}

func changedSelfTest(t *Track, change func(*answer)) error {
	changed := slices.Clone(answers)
	for i := range changed {
		if changed[i].track == t {
			change(&changed[i])
		}
	}
	return selfTest(changed)
}

// DeriveHKDF is the function that all derivation is done with.
func DeriveHKDF(key, salt []byte, info string, n int) ([]byte, error) {
	return hkdfSHA256{}.derive(key, salt, info, n)
}

// NewCipher is the cipher of one message of a track of KindAEAD, and its Open
// takes the nonce before the ciphertext.
func NewCipher(t *Track, subkey []byte) (cipher.AEAD, error) {
	return t.primitive.(aead).cipher(subkey)
}

// Pointered returns a track of ML-DSA-65 as if circl's keys held pointers.
func Pointered() *Track {
	t := *trackMLDSA65
	p := t.primitive.(mldsa[mldsa65.PublicKey, mldsa65.PrivateKey, *mldsa65.PublicKey, *mldsa65.PrivateKey])
	p.pointers = true
	t.primitive = p
	return &t
}

// HasPointers is hasPointers.
func HasPointers[T any]() bool { return hasPointers(reflect.TypeFor[T]()) }
