package core

import (
	"context"
	"errors"
	"testing"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/inmem"
	"github.com/rustyonions/ron-kms/core/secret"
)

// An authentic record with a field that this version does not know is another
// version's, not a forger's: the operator is told to upgrade, not to restore.
func TestRecordOfANewerVersion(t *testing.T) {
	t.Parallel()
	b, err := inmem.Open(1<<20, secret.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	v, err := newVault(b)
	if err != nil {
		t.Fatal(err)
	}
	value, err := v.encode(nameHead, 1, struct {
		headRecord
		Later bool `json:"later"`
	}{Later: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Commit(context.Background(), 0, backends.Put{Key: nameHead, Value: value}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.load(context.Background()); !errors.Is(err, errNewer) || errors.Is(err, backends.ErrTampered) {
		t.Fatal(err)
	}
}
