package receipts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrLocked is matched when another process, or another Book of this one, has
// the file open.
var ErrLocked = errors.New("receipts: locked")

// ErrClosed is matched when a closed book is saved.
var ErrClosed = errors.New("receipts: closed")

// A file is where a book is kept, locked for it alone. Book.saving guards it.
type file struct {
	path string
	lock *os.File // nil once closed
}

// Create makes the file of a new, empty book and opens it. The error matches
// [fs.ErrExist] if the file is there, or [ErrLocked].
func Create(path string, o Options) (*Book, error) {
	return open(path, o, func(b *Book) error {
		if _, err := os.Lstat(path); err == nil {
			return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		b.changes++
		return b.Save()
	})
}

// Open opens the book in a file. The error matches [fs.ErrNotExist] if it is not
// there, [ErrLocked] or [ErrCorrupt].
func Open(path string, o Options) (*Book, error) {
	return open(path, o, func(b *Book) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		err = b.decode(string(text))
		b.saved = b.changes
		return err
	})
}

func open(path string, o Options, fill func(*Book) error) (*Book, error) {
	b, err := New(o)
	if err != nil {
		return nil, err
	}
	l, err := lock(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("receipts: open: %w", err)
	}
	b.file = &file{path, l}
	if err := fill(b); err != nil {
		l.Close()
		return nil, fmt.Errorf("receipts: open: %w", err)
	}
	return b, nil
}

// Save writes what has changed since the last Save, and returns when it is
// durable. On an error the file is the old one. In memory it does nothing.
func (b *Book) Save() error {
	b.saving.Lock()
	defer b.saving.Unlock()
	return b.save()
}

// Close saves and unlocks the file. The book goes on in memory. Closing twice is
// allowed.
func (b *Book) Close() error {
	b.saving.Lock()
	defer b.saving.Unlock()
	if b.file == nil || b.file.lock == nil {
		return nil
	}
	err := b.save()
	err = errors.Join(err, b.file.lock.Close())
	b.file.lock = nil
	return err
}

// save is Save. The caller holds saving.
func (b *Book) save() error {
	if b.file == nil {
		return nil
	}
	if b.file.lock == nil {
		return ErrClosed
	}
	b.mu.Lock()
	changes := b.changes
	if changes == b.saved {
		b.mu.Unlock()
		return nil
	}
	text := b.encode()
	b.mu.Unlock()
	if err := replace(b.file.path, text); err != nil {
		return fmt.Errorf("receipts: save: %w", err)
	}
	b.mu.Lock()
	b.saved = changes
	b.mu.Unlock()
	return nil
}

// replace puts text in place of the file, whole and durable or not at all.
func replace(path string, text []byte) (err error) {
	tmp := path + ".tmp"
	// What an interrupted save left. The lock says that nobody is writing it.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
