package policy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	allowAll = `{"version":1,"defaults":{"default_action":"allow"}}`
	denyAll  = `{"version":2,"defaults":{"default_action":"deny"}}`
)

func writeFile(tb testing.TB, path, text string) {
	tb.Helper()
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		tb.Fatal(err)
	}
}

func allows(tb testing.TB, p Point) bool {
	tb.Helper()
	d, err := p.Decide(tb.Context(), Input{Tenant: "acme", Method: "KMS:SIGN"})
	if err != nil {
		tb.Fatal(err)
	}
	return d.Allow
}

// A file that is bad at the start is refused; one that turns bad later, in
// whatever way, leaves what was loaded in force and says why.
func TestFileKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "policy.json")
	if _, err := OpenFile(path, FileOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	writeFile(t, path, `{"version":1,"rules":[{}]}`)
	if _, err := OpenFile(path, FileOptions{}); err == nil {
		t.Fatal("a bad file was taken")
	}
	writeFile(t, path, allowAll)
	f, err := OpenFile(path, FileOptions{})
	if err != nil || !allows(t, f) {
		t.Fatal(err)
	}
	version := f.Version()
	for name, spoil := range map[string]func() error{
		"torn":     func() error { return os.WriteFile(path, []byte(denyAll[:len(denyAll)-1]), 0o600) },
		"empty":    func() error { return os.Truncate(path, 0) },
		"gone":     func() error { return os.Remove(path) },
		"folder":   func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"pipe":     func() error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
		"large":    func() error { return os.WriteFile(path, []byte(denyAll+strings.Repeat(" ", maxBundle)), 0o600) },
		"writable": func() error { return errors.Join(os.WriteFile(path, []byte(denyAll), 0o600), os.Chmod(path, 0o602)) },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := f.Reload(); err == nil || f.Err() == nil {
			t.Errorf("%s: no error", name)
		}
		if !allows(t, f) || f.Version() != version {
			t.Errorf("%s: it took hold", name)
		}
		os.RemoveAll(path)
		writeFile(t, path, allowAll)
		if err := f.Reload(); err != nil || f.Err() != nil {
			t.Errorf("%s, and mended: %v", name, err)
		}
	}
	writeFile(t, path, denyAll)
	if err := f.Reload(); err != nil || allows(t, f) || f.Version() == version {
		t.Errorf("a good file was not taken: %v", err)
	}
}

// Every change is seen, one of equal length in the same instant included, and
// each outcome is reported once.
func TestFileLook(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "policy.json")
	allow, deny := strings.Replace(allowAll, `:1`, `:2`, 1), strings.Replace(denyAll, `"deny"`, `"deny" `, 1)
	if len(allow) != len(deny) {
		t.Fatal("the two must be of one length")
	}
	writeFile(t, path, allow)
	f, err := OpenFile(path, FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	step := func(name string, want, bad, allowed bool) {
		t.Helper()
		changed, err := f.look()
		if changed != want || (err != nil) != bad || allows(t, f) != allowed {
			t.Errorf("%s: changed %v, %v, allows %v", name, changed, err, allows(t, f))
		}
	}
	step("nothing new", false, false, true)
	if err := errors.Join(os.WriteFile(path, []byte(deny), 0o600), os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
		t.Fatal(err)
	}
	step("same time, same length", true, false, false)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	step("another time", false, false, false)
	if !f.quiet {
		t.Error("an old file is read each time")
	}
	step("untouched", false, false, false)
	writeFile(t, path, `{`)
	step("bad", true, true, false)
	step("still bad", false, true, false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step("gone", true, true, false)
	step("still gone", false, true, false)
	writeFile(t, path, allow)
	step("good again", true, false, true)
}

func TestFileWatch(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "policy.json")
	writeFile(t, path, allowAll)
	f, err := OpenFile(path, FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reports, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		f.Watch(ctx, time.Millisecond, func(err error) { reports <- err })
	}()
	writeFile(t, path, denyAll)
	if err := <-reports; err != nil || allows(t, f) {
		t.Errorf("a new file: %v", err)
	}
	writeFile(t, path, `{`)
	if err := <-reports; err == nil || allows(t, f) {
		t.Error("a bad file was taken")
	}
	cancel()
	<-ended
}
