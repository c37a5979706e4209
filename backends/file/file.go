// Package file is the default backend: records in one bbolt file, flushed to
// disk on every change, every secret sealed under a root key that rests in an
// age file under a passphrase.
//
// A store is a folder of mode 0700 with, of this package's, two files of mode
// 0600:
//
//	root.age   the 32-byte root key, encrypted to a passphrase (age v1, scrypt)
//	keys.db    bbolt: bucket "records", and bucket "meta" with the revision
//
// Symbolic links are refused for both, and so are looser modes. The file lock
// that bbolt holds on keys.db makes one process the owner.
package file

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"filippo.io/age"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/software"
	"github.com/rustyonions/ron-kms/core/secret"
)

const (
	rootFile = "root.age"
	keysFile = "keys.db"

	rootSize = 32

	// DefaultWorkFactor is log2 of scrypt's N: about a second and 256 MiB.
	DefaultWorkFactor = 18
	// maxWorkFactor bounds what a changed root.age can make us compute.
	maxWorkFactor = 20

	lockWait = 50 * time.Millisecond
)

var (
	bucketRecords = []byte("records")
	bucketMeta    = []byte("meta")
	keyRevision   = []byte("revision")
)

// Create makes the files of a store in dir, which must exist and be empty, and
// returns with everything flushed to disk. workFactor is log2 of scrypt's N,
// 10 to 20; 0 means [DefaultWorkFactor].
func Create(dir string, passphrase []byte, workFactor int) error {
	if workFactor == 0 {
		workFactor = DefaultWorkFactor
	}
	if workFactor < 10 || workFactor > maxWorkFactor {
		return errors.New("file: create: work factor must be 10 to 20")
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("file: create: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("file: create: %w", backends.ErrExists)
	}
	sealed, err := sealRoot(passphrase, workFactor)
	if err != nil {
		return fmt.Errorf("file: create: %w", err)
	}
	if err := writeNew(filepath.Join(dir, rootFile), sealed); err != nil {
		return fmt.Errorf("file: create: %w", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, keysFile), 0o600, &bbolt.Options{Timeout: lockWait})
	if err != nil {
		return fmt.Errorf("file: create: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bucketRecords); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		return meta.Put(keyRevision, binary.BigEndian.AppendUint64(nil, 0))
	})
	if err := errors.Join(err, db.Close(), SyncDir(dir)); err != nil {
		return fmt.Errorf("file: create: %w", err)
	}
	return nil
}

// sealRoot makes a fresh root key and returns it sealed. The plain key is on
// the Go heap for a moment, inside secret.Do; it never reaches a file.
func sealRoot(passphrase []byte, workFactor int) (sealed []byte, err error) {
	arena, err := secret.NewArena(4096)
	if err != nil {
		return nil, err
	}
	defer arena.Close()
	root, err := arena.Random(rootSize)
	if err != nil {
		return nil, err
	}
	recipient, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return nil, err
	}
	recipient.SetWorkFactor(workFactor)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipient)
	if err != nil {
		return nil, err
	}
	useErr := root.Use(func(p []byte) {
		if _, err = w.Write(p); err == nil {
			err = w.Close()
		}
	})
	return out.Bytes(), errors.Join(useErr, err)
}

// OpenRoot unseals the root key of the store in dir into the arena. It needs
// no lock on the store: minting a token while the daemon runs uses it.
// Errors: ErrMissing, ErrPassphrase, ErrTampered, or the disk's own.
func OpenRoot(dir string, passphrase []byte, arena *secret.Arena) (*secret.Bytes, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	data, err := ReadPrivate(filepath.Join(dir, rootFile), 4096)
	if err != nil {
		return nil, err
	}
	identity, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, backends.ErrPassphrase
	}
	identity.SetMaxWorkFactor(maxWorkFactor)
	root, err := arena.New(rootSize)
	if err != nil {
		return nil, err
	}
	var openErr error
	err = root.Use(func(p []byte) {
		r, err := age.Decrypt(bytes.NewReader(data), identity)
		if err != nil {
			openErr = err
			return
		}
		if _, err := io.ReadFull(r, p); err != nil {
			openErr = fmt.Errorf("root key: %w", err)
			return
		}
		// Only the end of the stream proves that it was not cut short.
		if n, err := io.Copy(io.Discard, r); err != nil || n != 0 {
			openErr = errors.New("root key: wrong length")
		}
	})
	if err := errors.Join(err, openErr); err != nil {
		root.Destroy()
		if errors.Is(err, age.ErrIncorrectIdentity) {
			return nil, backends.ErrPassphrase
		}
		return nil, fmt.Errorf("file: %s: %w: %w", rootFile, backends.ErrTampered, err)
	}
	return root, nil
}

// Backend implements [backends.Backend].
type Backend struct {
	*software.Custodian
	arena *secret.Arena
	db    *bbolt.DB

	mu     sync.Mutex // guards closed, and orders Close after running calls
	closed bool
}

var _ backends.Backend = (*Backend)(nil)

// Open opens the store in dir and becomes its only owner. It never creates
// anything. arenaSize is in bytes. Errors: ErrMissing, ErrBusy, ErrPassphrase,
// ErrTampered, or the disk's own.
func Open(dir string, passphrase []byte, arenaSize int, o secret.Options) (*Backend, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	db, err := openDB(filepath.Join(dir, keysFile))
	if err != nil {
		return nil, err
	}
	b, err := unseal(dir, passphrase, arenaSize, o, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return b, nil
}

func unseal(dir string, passphrase []byte, arenaSize int, o secret.Options, db *bbolt.DB) (*Backend, error) {
	arena, err := secret.NewArenaWith(arenaSize, o)
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	root, err := OpenRoot(dir, passphrase, arena)
	if err != nil {
		arena.Close()
		return nil, err
	}
	custodian, err := software.New(arena, root)
	if err != nil {
		arena.Close()
		return nil, err
	}
	return &Backend{Custodian: custodian, arena: arena, db: db}, nil
}

func openDB(path string) (db *bbolt.DB, err error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: lockWait,
			// bbolt would create the file; opening a store never does.
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				return openChecked(name, flag&^os.O_CREATE|unix.O_NOFOLLOW, mode)
			},
		})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout), errors.Is(err, backends.ErrBusy):
		return nil, backends.ErrBusy
	case errors.Is(err, errStructure), errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum),
		errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("file: %s: %w: %w", keysFile, backends.ErrTampered, err)
	case err != nil:
		return nil, fmt.Errorf("file: %s: %w", keysFile, err)
	}
	return db, nil
}

// openChecked opens keys.db, takes the lock that bbolt takes again on the same
// file, and checks the structure of what is there while nobody else can change
// it. An empty file, which bbolt would make a new store of, is damaged too.
func openChecked(name string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = backends.ErrBusy
	}
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil {
			err = sameFile(name, st)
		}
		if err == nil {
			err = checkBolt(f, st.Size())
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sameFile returns ErrBusy if the name now stands for another file than st:
// Compact replaced it between our opening and our lock.
func sameFile(name string, st os.FileInfo) error {
	now, err := os.Lstat(name)
	if err == nil && !os.SameFile(st, now) {
		err = backends.ErrBusy
	}
	return err
}

// guard turns what bbolt does on a page that was damaged while the store was
// open, a panic or a fault in its mapping, into ErrTampered, and the answer of
// a closed file into ErrClosed.
func guard(fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("file: %s: %w: %v", keysFile, backends.ErrTampered, p)
		}
		if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			err = backends.ErrClosed
		}
	}()
	return fn()
}

// Name implements [backends.Backend].
func (b *Backend) Name() string { return "file" }

// Load implements [backends.Records].
func (b *Backend) Load(_ context.Context, fn func(string, []byte) error) (rev uint64, err error) {
	if b.isClosed() {
		return 0, backends.ErrClosed
	}
	err = guard(func() error {
		return b.db.View(func(tx *bbolt.Tx) error {
			meta, records := tx.Bucket(bucketMeta), tx.Bucket(bucketRecords)
			if meta == nil || records == nil || len(meta.Get(keyRevision)) != 8 {
				return fmt.Errorf("file: %s: %w: buckets are missing", keysFile, backends.ErrTampered)
			}
			rev = binary.BigEndian.Uint64(meta.Get(keyRevision))
			return records.ForEach(func(k, v []byte) error {
				return fn(string(k), bytes.Clone(v))
			})
		})
	})
	return rev, err
}

// Get implements [backends.Records].
func (b *Backend) Get(_ context.Context, key string) (value []byte, err error) {
	if b.isClosed() {
		return nil, backends.ErrClosed
	}
	err = guard(func() error {
		return b.db.View(func(tx *bbolt.Tx) error {
			value = bytes.Clone(tx.Bucket(bucketRecords).Get([]byte(key)))
			return nil
		})
	})
	return value, err
}

// Commit implements [backends.Records]; bbolt flushes to disk before it
// returns.
func (b *Backend) Commit(_ context.Context, revision uint64, puts ...backends.Put) (next uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, backends.ErrClosed
	}
	err = guard(func() error {
		return b.db.Update(func(tx *bbolt.Tx) error {
			meta, records := tx.Bucket(bucketMeta), tx.Bucket(bucketRecords)
			if binary.BigEndian.Uint64(meta.Get(keyRevision)) != revision {
				return backends.ErrConflict
			}
			for _, p := range puts {
				if p.Value == nil {
					if err := records.Delete([]byte(p.Key)); err != nil {
						return err
					}
				} else if err := records.Put([]byte(p.Key), p.Value); err != nil {
					return err
				}
			}
			next = revision + 1
			return meta.Put(keyRevision, binary.BigEndian.AppendUint64(nil, next))
		})
	})
	if err != nil {
		return 0, fmt.Errorf("file: commit: %w", err)
	}
	return next, nil
}

func (b *Backend) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// Close implements [backends.Backend].
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	b.Custodian.Close()
	return errors.Join(b.arena.Close(), b.db.Close())
}

func checkDir(dir string) error {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return backends.ErrMissing
	}
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("file: the store is not a folder: %w", backends.ErrMissing)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("file: the store's folder has mode %04o; chmod 700 it", st.Mode().Perm())
	}
	return nil
}

func checkFile(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return backends.ErrMissing
	}
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("file: %s is not a regular file (links are refused)", filepath.Base(path))
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("file: %s has mode %04o; chmod 600 it", filepath.Base(path), st.Mode().Perm())
	}
	return nil
}

// ReadPrivate reads a file of a store of at most max bytes, refusing links and
// loose modes.
func ReadPrivate(path string, max int64) ([]byte, error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("file: %s: %w: too large", filepath.Base(path), backends.ErrTampered)
	}
	return data, nil
}

// writeNew writes a file that must not exist yet and flushes it.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir flushes a folder, so that the names in it survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
