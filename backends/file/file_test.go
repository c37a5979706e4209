package file_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/backendtest"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

const passphrase = "correct horse battery staple"

// openVariable makes the test binary a second process that tries to open the
// store in the folder it names.
const openVariable = "FILE_TEST_OPEN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(openVariable); dir != "" {
		b, err := file.Open(dir, []byte(passphrase), backendtest.ArenaSize, secret.Options{})
		switch {
		case errors.Is(err, backends.ErrBusy):
			os.Exit(3)
		case err != nil:
			os.Exit(4)
		}
		b.Close()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// create makes a store and returns its folder.
func create(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := file.Create(dir, []byte(passphrase), 10); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *file.Backend {
	t.Helper()
	b, err := file.Open(dir, []byte(passphrase), backendtest.ArenaSize, secret.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// the whole contract, and everything survives Close.
func TestContract(t *testing.T) {
	t.Parallel()
	dirs := make(map[backends.Backend]string)
	lock := make(chan struct{}, 1) // guards dirs
	opened := func(t *testing.T, dir string) backends.Backend {
		b := open(t, dir)
		lock <- struct{}{}
		dirs[b] = dir
		<-lock
		return b
	}
	backendtest.Run(t, func(t *testing.T) backends.Backend {
		return opened(t, create(t))
	}, func(t *testing.T, b backends.Backend) backends.Backend {
		lock <- struct{}{}
		dir := dirs[b]
		<-lock
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		return opened(t, dir)
	})
}

// fails opens a store that must not open, and checks that trying left every
// file as it was.
func fails(t *testing.T, dir, pass string, want error) error {
	t.Helper()
	before := tree(t, dir)
	b, err := file.Open(dir, []byte(pass), backendtest.ArenaSize, secret.Options{})
	if err == nil {
		b.Close()
		t.Fatal("the store opened")
	}
	if want != nil && !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	if after := tree(t, dir); after != before {
		t.Fatalf("opening changed the folder:\n%s\nbecame\n%s", before, after)
	}
	return err
}

// tree describes a folder with modes and contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	_ = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return nil
		}
		out.WriteString(path + " " + info.Mode().String())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out.WriteByte(' ')
			out.Write(b)
		}
		out.WriteByte('\n')
		return nil
	})
	return out.String()
}

// Opening never creates and tells apart what is wrong.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	root := func(dir string) string { return filepath.Join(dir, "root.age") }
	keys := func(dir string) string { return filepath.Join(dir, "keys.db") }
	link := func(path string) error {
		if err := os.Rename(path, path+".real"); err != nil {
			return err
		}
		return os.Symlink(path+".real", path)
	}
	for _, c := range []struct {
		name string
		harm func(dir string) error
		pass string
		want error  // nil: any
		text string // of the error
	}{
		{"wrong passphrase", nil, "incorrect horse", backends.ErrPassphrase, ""},
		{"empty passphrase", nil, "\x00", backends.ErrPassphrase, ""},
		{"passphrase with a newline", nil, passphrase + "\n", backends.ErrPassphrase, ""},
		{"no folder", os.RemoveAll, "", backends.ErrMissing, ""},
		{"no root", func(d string) error { return os.Remove(root(d)) }, "", backends.ErrMissing, ""},
		{"no keys", func(d string) error { return os.Remove(keys(d)) }, "", backends.ErrMissing, ""},
		{"empty root", func(d string) error { return os.Truncate(root(d), 0) }, "", backends.ErrTampered, ""},
		{"empty keys", func(d string) error { return os.Truncate(keys(d), 0) }, "", backends.ErrTampered, ""},
		{"huge root", func(d string) error { return os.Truncate(root(d), 1<<20) }, "", backends.ErrTampered, "too large"},
		{"folder mode", func(d string) error { return os.Chmod(d, 0o750) }, "", nil, "chmod 700"},
		{"root mode", func(d string) error { return os.Chmod(root(d), 0o640) }, "", nil, "chmod 600"},
		{"keys mode", func(d string) error { return os.Chmod(keys(d), 0o604) }, "", nil, "chmod 600"},
		{"root is a link", func(d string) error { return link(root(d)) }, "", nil, "links are refused"},
		{"keys is a link", func(d string) error { return link(keys(d)) }, "", nil, "links are refused"},
		{"folder is a link", link, "", backends.ErrMissing, "not a folder"},
		{"keys is a folder", func(d string) error { return errors.Join(os.Remove(keys(d)), os.Mkdir(keys(d), 0o700)) }, "", nil, "not a regular file"},
		{"root of another work factor", func(d string) error {
			b, err := os.ReadFile(root(d))
			if err != nil {
				return err
			}
			return os.WriteFile(root(d), bytes.Replace(b, []byte(" 10\n"), []byte(" 30\n"), 1), 0o600)
		}, "", nil, ""}, // and no hour of computing
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := create(t)
			if c.harm != nil {
				if err := c.harm(dir); err != nil {
					t.Fatal(err)
				}
			}
			pass := c.pass
			if pass == "" {
				pass = passphrase
			}
			err := fails(t, dir, pass, c.want)
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("the error does not say %q: %v", c.text, err)
			}
			if strings.Contains(err.Error(), pass) {
				t.Errorf("the error repeats the passphrase: %v", err)
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	dir := create(t)
	before := tree(t, dir)
	if err := file.Create(dir, []byte("other"), 10); !errors.Is(err, backends.ErrExists) {
		t.Errorf("over a store: %v, want ErrExists", err)
	}
	if tree(t, dir) != before {
		t.Error("a refused create changed the store")
	}
	empty := t.TempDir()
	for _, factor := range []int{-1, 1, 9, 21, 63} {
		if err := file.Create(empty, []byte(passphrase), factor); err == nil {
			t.Errorf("work factor %d was accepted", factor)
		}
	}
	if err := file.Create(empty, nil, 10); err == nil {
		t.Error("an empty passphrase was accepted")
	}
	if err := file.Create(filepath.Join(empty, "none"), []byte(passphrase), 10); err == nil {
		t.Error("create made a folder")
	}
	if names, _ := os.ReadDir(empty); len(names) != 0 {
		t.Errorf("refused creates left %v", names)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := create(t)
	b := open(t, dir)
	if _, err := b.Commit(context.Background(), 0, backends.Put{Key: "a", Value: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Fatalf("%v, %v; want two files", names, err)
	}
	for _, n := range names {
		if st, err := n.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", n.Name(), st.Mode(), err)
		}
	}
}

// One process owns a store, and in it one Backend; another gets ErrBusy at
// once and the store once it is free. R-261.
func TestBusy(t *testing.T) {
	t.Parallel()
	dir := create(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := func() int {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), openVariable+"="+dir)
		_ = cmd.Run()
		return cmd.ProcessState.ExitCode()
	}
	b := open(t, dir)
	for range 2 {
		if c, err := file.Open(dir, []byte(passphrase), backendtest.ArenaSize, secret.Options{}); !errors.Is(err, backends.ErrBusy) {
			if err == nil {
				c.Close()
			}
			t.Fatalf("a second open in this process: %v, want ErrBusy", err)
		}
	}
	if code := other(); code != 3 {
		t.Errorf("another process: exit %d, want 3 (busy)", code)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if code := other(); code != 0 {
		t.Errorf("another process, after Close: exit %d, want 0", code)
	}
	open(t, dir)
}

// An unsuccessful open leaves neither the lock nor locked memory behind.
func TestFailedOpenReleases(t *testing.T) {
	t.Parallel()
	dir := create(t)
	for range 3 {
		fails(t, dir, "wrong", backends.ErrPassphrase)
	}
	data, err := os.ReadFile(filepath.Join(dir, "keys.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "keys.db"), 100); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, passphrase, backends.ErrTampered)
	if err := os.WriteFile(filepath.Join(dir, "keys.db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

// Every byte of root.age matters, and changing it is an error in plain terms.
//
func TestRootFlips(t *testing.T) {
	t.Parallel()
	dir := create(t)
	path := filepath.Join(dir, "root.age")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	arena, err := secret.NewArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	try := func(what string, at int, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := file.OpenRoot(dir, []byte(passphrase), arena)
		if err == nil {
			root.Destroy()
			t.Errorf("%s at %d: the root key opened", what, at)
		} else if !errors.Is(err, backends.ErrTampered) && !errors.Is(err, backends.ErrPassphrase) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		try("flip", i, bad)
		if i%8 == 0 {
			try("cut", i, good[:i])
		}
	}
	try("longer", len(good), append(bytes.Clone(good), 0))
	if n := arena.Stats().Slots; n != 0 {
		t.Errorf("failed opens leave %d secrets in the arena", n)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := file.OpenRoot(dir, []byte(passphrase), arena)
	if err != nil {
		t.Fatal(err)
	}
	root.Destroy()
}

// No plain secret reaches a file: neither the root key nor anything derived
// from it, nor a seed, found through its seal..
func TestNoSecretInFiles(t *testing.T) {
	t.Parallel()
	dir := create(t)
	b := open(t, dir)
	ctx := context.Background()
	var canaries [][]byte
	keep := func(k *secret.Bytes) {
		if err := k.Use(func(p []byte) { canaries = append(canaries, bytes.Clone(p)) }); err != nil {
			t.Fatal(err)
		}
		k.Destroy()
	}
	root, err := file.OpenRoot(dir, []byte(passphrase), b.Arena())
	if err != nil {
		t.Fatal(err)
	}
	seal, err := root.Derive(b.Arena(), "ron-kms/v1/seal", 32)
	if err != nil {
		t.Fatal(err)
	}
	rev := uint64(0)
	for _, track := range []string{"ed25519", "ml-dsa-65"} {
		r := backends.Ref{Track: track, KID: api.KID{
			Tenant: "acme", Purpose: "test", Alg: "ed25519+ml-dsa-65", ID: "7f000000-0000-4000-8000-000000000001", Version: 1,
		}}
		m, err := b.Generate(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		// The binding is rebuilt here by hand: it is part of the format.
		kid := r.KID.String()
		aad := "ron-kms/key/v1\x00" + string([]byte{0, byte(len(kid))}) + kid + string([]byte{0, byte(len(track))}) + track
		seed, err := seal.Unseal(b.Arena(), m.Sealed, []byte(aad))
		if err != nil {
			t.Fatalf("the sealed seed does not open as documented: %v", err)
		}
		keep(seed)
		if rev, err = b.Commit(ctx, rev, backends.Put{Key: track, Value: m.Sealed}); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(m.Sealed, canaries[len(canaries)-1]) || bytes.Contains(m.Public, canaries[len(canaries)-1]) {
			t.Errorf("%s: material holds the plain seed", track)
		}
	}
	keep(seal)
	keep(root)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	all := tree(t, dir)
	if !strings.Contains(all, "ml-dsa-65") {
		t.Fatal("the scan does not see the records")
	}
	for i, c := range append(canaries, []byte(passphrase)) {
		if strings.Contains(all, string(c)) || strings.Contains(all, string(c[:16])) {
			t.Errorf("secret %d is in a file", i)
		}
	}
}
