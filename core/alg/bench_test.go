package alg_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/rustyonions/ron-kms/core/alg"
)

// The primitives alone, with keys on the Go heap, to compare the tracks with.
func BenchmarkBareEd25519(b *testing.B) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	msg := make([]byte, 200)
	sig := ed25519.Sign(private, msg)
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			ed25519.Sign(private, msg)
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			ed25519.Verify(public, msg, sig)
		}
	})
}

func BenchmarkBareMLDSA65(b *testing.B) {
	public, private, err := mldsa65.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	msg, sig := make([]byte, 200), make([]byte, mldsa65.SignatureSize)
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			if err := mldsa65.SignTo(private, msg, nil, true, sig); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			mldsa65.Verify(public, msg, nil, sig)
		}
	})
}

func BenchmarkTrack(b *testing.B) {
	for _, tr := range tracksOf(alg.KindSign) {
		a := newArena(b)
		seed, _, err := tr.Generate(a)
		if err != nil {
			b.Fatal(err)
		}
		k := newPair(b, a, tr, seed)
		msg := make([]byte, 200)
		sig := k.sign(b, msg)
		b.Run(tr.Name()+"/generate", func(b *testing.B) {
			for b.Loop() {
				seed, _, err := tr.Generate(a)
				if err != nil {
					b.Fatal(err)
				}
				seed.Destroy()
			}
		})
		b.Run(tr.Name()+"/expand", func(b *testing.B) {
			for b.Loop() {
				e, err := tr.Expand(a, seed)
				if err != nil {
					b.Fatal(err)
				}
				e.Destroy()
			}
		})
		b.Run(tr.Name()+"/sign", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tr.Sign(k.expanded, msg); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(tr.Name()+"/verify", func(b *testing.B) {
			for b.Loop() {
				if !k.public.Verify(msg, sig) {
					b.Fatal("does not verify")
				}
			}
		})
	}
}

func BenchmarkWrap(b *testing.B) {
	for _, tr := range wrappers() {
		k := generate(b, newArena(b), tr)
		data := make([]byte, 32)
		blob := k.wrap(b, "acme", "acme/data/a/u#v1", nil, data)
		b.Run(tr.Name()+"/wrap", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				k.wrap(b, "acme", "acme/data/a/u#v1", nil, data)
			}
		})
		b.Run(tr.Name()+"/unwrap", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.unwrap(b, "acme", nil, blob); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
