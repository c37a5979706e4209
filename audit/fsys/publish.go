package fsys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Publish makes the directory partial, with all that is in it, durable, and puts it in the place of dir, which may exist and
// is then removed. Whoever opens dir finds the old contents or the new ones, where the operating system can exchange names.
func Publish(partial, dir string) error {
	if err := syncTree(partial); err != nil {
		return err
	}
	_, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = os.Rename(partial, dir)
	case err == nil:
		err = exchange(partial, dir)
	}
	if err == nil {
		err = syncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(partial)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// swap exchanges two directories in three steps.
func swap(a, b string) error {
	old := b + ".old"
	if err := os.Rename(b, old); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Rename(old, b))
	}
	return os.Rename(old, a)
}
