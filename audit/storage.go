package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// storage is the directory of one log. Tests replace it with one that fails, tears and forgets.
type storage interface {
	openFile(name string, flag int) (file, error)
	rename(from, to string) error
	remove(name string) error
	list() ([]string, error)
	// syncDir makes created, renamed and removed names durable.
	syncDir() error
	// lock takes the lock of the log on the named file, exclusive for a writer, or returns ErrBusy at once.
	lock(name string, writer bool) (io.Closer, error)
	// close releases the directory itself, not the files.
	close() error
}

// file is one open file. Offsets are explicit: there is no position to share.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// datasync returns when all that was written, and the size, is durable. After an error nothing is known
	// about any page written since the last success.
	datasync() error
	size() (int64, error)
	truncate(size int64) error
}

// osStorage is a directory of the operating system. os.Root keeps every name inside it, symbolic links included.
type osStorage struct{ root *os.Root }

func openStorage(dir string) (storage, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return osStorage{root}, nil
}

func (s osStorage) openFile(name string, flag int) (file, error) {
	f, err := s.root.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (s osStorage) rename(from, to string) error { return s.root.Rename(from, to) }
func (s osStorage) remove(name string) error     { return s.root.Remove(name) }
func (s osStorage) close() error                 { return s.root.Close() }

func (s osStorage) list() ([]string, error) {
	d, err := s.root.Open(".")
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

func (s osStorage) syncDir() error {
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s osStorage) lock(name string, writer bool) (io.Closer, error) {
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

func (f osFile) datasync() error           { return datasync(f.File) }
func (f osFile) truncate(size int64) error { return f.File.Truncate(size) }

func (f osFile) size() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

// readAll returns the contents of the named file, which may not exceed limit bytes.
func readAll(st storage, name string, limit int64) ([]byte, error) {
	f, err := st.openFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	b := make([]byte, n)
	if err := readFull(f, b); err != nil {
		return nil, err
	}
	return b, nil
}

// readFull reads len(b) bytes from the start of f.
func readFull(f file, b []byte) error {
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// replaceFile makes the named file hold b, all or nothing: temporary file, sync, rename, sync of the directory.
func replaceFile(st storage, name string, b []byte) error {
	tmp := name + tmpSuffix
	f, err := st.openFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := st.rename(tmp, name); err != nil {
		return err
	}
	return st.syncDir()
}

// removeIfExists removes the named file, which need not be there.
func removeIfExists(st storage, name string) error {
	if err := st.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
