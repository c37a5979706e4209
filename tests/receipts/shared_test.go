package receipts

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	origin = "ron-kms/audit/5f0c7a11"
	kid    = "acme/audit/ed25519/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90"
	limit  = "100"
)

// pairs runs a test for each two implementations, and for each with itself.
func pairs(t *testing.T, test func(t *testing.T, a, b peer)) {
	t.Parallel()
	for first, startFirst := range languages {
		for second, startSecond := range languages {
			t.Run(first+" "+second, func(t *testing.T) {
				t.Parallel()
				a, b := startFirst(t), startSecond(t)
				defer a.stop()
				defer b.stop()
				test(t, a, b)
			})
		}
	}
}

// what one implementation saw, the other refuses to go behind, and back.
func TestOneReadsWhatAnotherWrote(t *testing.T) {
	pairs(t, func(t *testing.T, a, b peer) {
		path := filepath.Join(t.TempDir(), "book")
		expect(t, a, "ok", "create", path, limit)
		expect(t, a, "ok", "mark", "m")
		expect(t, a, "ok", check("m", kid, receipt{origin, 41, 3, 40})...)
		expect(t, a, "ok", "close")

		expect(t, b, "ok", "open", path, limit)
		expect(t, b, "ok", "mark", "m")
		expect(t, b, "ok", check("m", kid, receipt{origin, 43, 4, 42})...)
		expect(t, b, "ok", "mark", "m")
		expect(t, b, "rollback:index", check("m", kid, receipt{origin, 42, 5, 42})...)
		expect(t, b, "ok", "close")

		expect(t, a, "ok", "open", path, limit)
		expect(t, a, "ok", "mark", "m")
		expect(t, a, "rollback:stopped", check("m", kid, receipt{origin, 50, 5, 50})...)
		expect(t, a, "ok", "close")
		want := "ron-kms receipts 1\nlog " + origin + " stopped 42 44\nkey " + kid + " 4 43\nend\n"
		if got := contents(t, path); got != want {
			t.Errorf("the file is\n%s\nwant\n%s", got, want)
		}
	})
}

// A file that one has open, no other opens or creates; nor does what was
// refused take the lock away. It is free after close, and after a kill.
func TestLock(t *testing.T) {
	pairs(t, func(t *testing.T, a, b peer) {
		path := filepath.Join(t.TempDir(), "book")
		expect(t, a, "ok", "create", path, limit)
		for range 2 {
			expect(t, b, "locked", "open", path, limit)
			expect(t, b, "locked", "create", path, limit)
			expect(t, a, "ok", "save")
		}
		expect(t, a, "ok", "close")
		expect(t, b, "ok", "open", path, limit)
		expect(t, a, "locked", "open", path, limit)
		b.stop()
		expect(t, a, "ok", "open", path, limit)
		expect(t, a, "ok", "close")
	})
}

// Files are the owner's alone; creating does not replace and opening
// does not create; a link in the place of the temporary file is not followed.
func TestCreateAndOpen(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		dir := t.TempDir()
		path, victim := filepath.Join(dir, "book"), filepath.Join(dir, "victim")
		if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
			t.Fatal(err)
		}
		expect(t, p, "missing", "open", path, limit)
		if _, err := os.Lstat(path); err == nil {
			t.Error("opening made the file")
		}
		if err := os.Symlink(victim, path+".tmp"); err != nil {
			t.Fatal(err)
		}
		expect(t, p, "ok", "create", path, limit)
		for _, name := range []string{path, path + ".lock"} {
			if info, err := os.Lstat(name); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
		expect(t, p, "ok", "close")
		expect(t, p, "exists", "create", path, limit)
		if got := contents(t, victim); got != "untouched" {
			t.Errorf("the file behind the link is %q", got)
		}
		if got := contents(t, path); got != "ron-kms receipts 1\nend\n" {
			t.Errorf("the new book is %q", got)
		}
	})
}

// A save that fails leaves the old file, and what was to be saved is saved by
// the next one.
func TestSaveThatFails(t *testing.T) {
	each(t, func(t *testing.T, p peer) {
		path := filepath.Join(t.TempDir(), "book")
		expect(t, p, "ok", "create", path, limit)
		before := contents(t, path)
		expect(t, p, "ok", "accept", origin)
		if err := os.MkdirAll(path+".tmp/in the way", 0o700); err != nil {
			t.Fatal(err)
		}
		expect(t, p, "file error", "save")
		if got := contents(t, path); got != before {
			t.Errorf("after the failure the file is %q", got)
		}
		if err := os.RemoveAll(path + ".tmp"); err != nil {
			t.Fatal(err)
		}
		expect(t, p, "ok", "save")
		if got := contents(t, path); !strings.Contains(got, "log "+origin+" current 0 0\n") {
			t.Errorf("after saving again the file is %q", got)
		}
		expect(t, p, "ok", "close")
		if _, err := os.Lstat(path + ".tmp"); err == nil || !os.IsNotExist(err) {
			t.Errorf("the temporary file is there: %v, want %v", err, fs.ErrNotExist)
		}
	})
}
