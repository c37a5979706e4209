// Package fsys is what the audit log needs of a file system: one directory, explicit offsets, and syncs that say when
// they fail. Tests put a simulated disk in its place (package fsystest).
package fsys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Lock when somebody else holds the lock.
var ErrBusy = errors.New("the directory is in use")

// ErrTooLong is wrapped by the errors of ReadFile about files that are longer than they may be.
var ErrTooLong = errors.New("the file is too long")

// ErrReplaced is wrapped by the errors of ReplaceFile after which the file has its new contents, perhaps not durably.
var ErrReplaced = errors.New("the file was replaced, perhaps not durably")

// TmpSuffix ends the names of files in the making.
const TmpSuffix = ".tmp"

// A Dir is an open directory. Names are of files directly in it.
type Dir interface {
	OpenFile(name string, flag int) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	List() ([]string, error)
	// SyncDir makes created, renamed and removed names durable.
	SyncDir() error
	// Lock takes the lock of the log on the named file, exclusive for a writer, or returns ErrBusy at once.
	Lock(name string, writer bool) (io.Closer, error)
	// Close releases the directory itself, not the files.
	Close() error
}

// A File is one open file. Offsets are explicit: there is no position to share.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Datasync returns when all that was written, and the size, is durable. After an error nothing is known
	// about any page written since the last success.
	Datasync() error
	Size() (int64, error)
	Truncate(size int64) error
}

// osDir is a directory of the operating system. os.Root keeps every name inside it, symbolic links included.
type osDir struct{ root *os.Root }

// Open opens a directory of the operating system.
func Open(dir string) (Dir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return osDir{root}, nil
}

func (s osDir) OpenFile(name string, flag int) (File, error) {
	f, err := s.root.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (s osDir) Rename(from, to string) error { return s.root.Rename(from, to) }
func (s osDir) Remove(name string) error     { return s.root.Remove(name) }
func (s osDir) Close() error                 { return s.root.Close() }

func (s osDir) List() ([]string, error) {
	d, err := s.root.Open(".")
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

func (s osDir) SyncDir() error {
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s osDir) Lock(name string, writer bool) (io.Closer, error) {
	how := unix.LOCK_SH
	if writer {
		how = unix.LOCK_EX
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	// The lock belongs to the open file description: it ends with the process, whatever kills it. Somebody who verifies the log
	// holds it for a moment, so one refusal is not the last word.
	for try := 0; ; try++ {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return flock{f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		if !writer || try == lockTries {
			return nil, errors.Join(ErrBusy, f.Close())
		}
		time.Sleep(lockPause)
	}
}

const (
	lockTries = 10
	lockPause = 5 * time.Millisecond
)

// flock is a held lock. A child that is between fork and exec has the description too, so closing alone would not release it.
type flock struct{ f *os.File }

func (l flock) Close() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}

type osFile struct{ *os.File }

func (f osFile) Datasync() error           { return datasync(f.File) }
func (f osFile) Truncate(size int64) error { return f.File.Truncate(size) }

func (f osFile) Size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

// ReadFile returns the contents of the named file, which may not exceed limit bytes.
func ReadFile(d Dir, name string, limit int64) ([]byte, error) {
	f, err := d.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLong, name, limit)
	}
	b := make([]byte, n)
	if err := ReadFull(f, b); err != nil {
		return nil, err
	}
	return b, nil
}

// ReadFull reads len(b) bytes from the start of f.
func ReadFull(f File, b []byte) error {
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ReplaceFile makes the named file hold b, all or nothing: temporary file, sync, rename, sync of the directory.
func ReplaceFile(d Dir, name string, b []byte) error {
	tmp := name + TmpSuffix
	f, err := d.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.Rename(tmp, name); err != nil {
		return err
	}
	if err := d.SyncDir(); err != nil {
		return fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	return nil
}

// RemoveIfExists removes the named file, which need not be there.
func RemoveIfExists(d Dir, name string) error {
	if err := d.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
