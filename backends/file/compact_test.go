package file_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/file"
)

// A compacted store holds the same records at the same revision, and nothing of
// what was overwritten; without it, that is still in the file.
func TestCompact(t *testing.T) {
	t.Parallel()
	dir := create(t)
	b := open(t, dir)
	ctx := context.Background()
	old := bytes.Repeat([]byte("overwritten "), 20)
	rev, err := b.Commit(ctx, 0, backends.Put{Key: "a", Value: old}, backends.Put{Key: "b", Value: []byte("kept")})
	if err == nil {
		rev, err = b.Commit(ctx, rev, backends.Put{Key: "a", Value: []byte("new")})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Compact(dir); !errors.Is(err, backends.ErrBusy) {
		t.Fatalf("compacted while open: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys.db")
	contains := func() bool {
		t.Helper()
		data, err := os.ReadFile(keys)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(data, old[:24])
	}
	if !contains() {
		t.Fatal("the old value is gone already: the test shows nothing")
	}
	// What an interrupted one left is in nobody's way.
	if err := os.WriteFile(keys+".compact", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := file.Compact(dir); err != nil {
		t.Fatal(err)
	}
	if contains() {
		t.Error("the old value is still in the file")
	}
	if st, err := os.Stat(keys); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := os.Stat(keys + ".compact"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	b = open(t, dir)
	got := make(map[string]string)
	now, err := b.Load(ctx, func(k string, v []byte) error { got[k] = string(v); return nil })
	if err != nil || now != rev || len(got) != 2 || got["a"] != "new" || got["b"] != "kept" {
		t.Errorf("revision %d of %d, %v, %v", now, rev, got, err)
	}
	if _, err := b.Commit(ctx, rev, backends.Put{Key: "c", Value: []byte("goes on")}); err != nil {
		t.Error(err)
	}
}

// A folder without a store, and a damaged one, are left as they are.
func TestCompactRefused(t *testing.T) {
	t.Parallel()
	if err := file.Compact(filepath.Join(t.TempDir(), "none")); !errors.Is(err, backends.ErrMissing) {
		t.Errorf("no store: %v", err)
	}
	dir := create(t)
	keys := filepath.Join(dir, "keys.db")
	data, err := os.ReadFile(keys)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[:4096*2])
	if err := os.WriteFile(keys, data, 0o600); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	if err := file.Compact(dir); !errors.Is(err, backends.ErrTampered) {
		t.Errorf("damaged: %v", err)
	}
	if tree(t, dir) != before {
		t.Error("the folder changed")
	}
}
