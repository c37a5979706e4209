package fsys

import (
	"os"
	"path/filepath"
	"testing"
)

// A folder takes the place of another, or of none, in one step or in three, and the old one is gone.
func TestPublish(t *testing.T) {
	t.Parallel()
	for name, publish := range map[string]func(a, b string) error{
		"publish": Publish,
		"swap": func(a, b string) error {
			if err := swap(a, b); err != nil {
				return err
			}
			return os.RemoveAll(a)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			dir, partial := filepath.Join(base, "dir"), filepath.Join(base, "dir.partial")
			for i, text := range []string{"one", "two"} {
				if err := os.Mkdir(partial, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(partial, "file"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					if err := Publish(partial, dir); err != nil {
						t.Fatal(err)
					}
				} else if err := publish(partial, dir); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(filepath.Join(dir, "file"))
				if err != nil || string(b) != text {
					t.Errorf("%q: %v", b, err)
				}
			}
			names, err := os.ReadDir(base)
			if err != nil || len(names) != 1 {
				t.Errorf("%v is left: %v", names, err)
			}
		})
	}
	if err := Publish(filepath.Join(t.TempDir(), "none"), t.TempDir()); err == nil {
		t.Error("a folder that is not there is published")
	}
}
