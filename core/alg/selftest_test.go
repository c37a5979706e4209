package alg_test

import (
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

func TestSelfTest(t *testing.T) {
	t.Parallel()
	if err := alg.SelfTest(); err != nil {
		t.Fatal(err)
	}
}

// The self-test fails for each track that computes wrongly, that has another
// answer than the known one, and that has none.
func TestSelfTestFails(t *testing.T) {
	t.Parallel()
	for _, tr := range tracks() {
		errs := map[string]error{"no answer": alg.SelfTestWithout(tr)}
		if tr.Kind() != alg.KindAEAD {
			errs["other answer"] = alg.SelfTestDigest(tr)
		}
		if tr.Kind() != alg.KindKDF {
			errs["faulty"] = alg.SelfTestFaulty(tr)
		}
		if tr.Kind() == alg.KindKEM || tr.Kind() == alg.KindAEAD {
			errs["other ciphertext"] = alg.SelfTestSealed(tr)
		}
		for name, err := range errs {
			if err == nil || !strings.Contains(err.Error(), tr.Name()) {
				t.Errorf("%s: %s: %v", tr.Name(), name, err)
			}
		}
	}
}

func BenchmarkSelfTest(b *testing.B) {
	for b.Loop() {
		if err := alg.SelfTest(); err != nil {
			b.Fatal(err)
		}
	}
}
