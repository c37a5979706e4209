package inmem_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/backendtest"
	"github.com/rustyonions/ron-kms/backends/inmem"
	"github.com/rustyonions/ron-kms/core/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// the whole contract, and everything is gone with Close.
func TestContract(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, func(t *testing.T) backends.Backend {
		b, err := inmem.Open(backendtest.ArenaSize, secret.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, nil)
}

func TestOpenRefusesAnArenaTooSmall(t *testing.T) {
	t.Parallel()
	if b, err := inmem.Open(0, secret.Options{}); err == nil {
		b.Close()
		t.Fatal("an arena of no bytes was accepted")
	}
}
