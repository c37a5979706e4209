package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// FileOptions are settings of a [File]. The zero value is usable.
type FileOptions struct {
	// Region is what rules with a region are compared with. Without it, they
	// match only if theirs is "*".
	Region string
}

// File is the decision point of a bundle of ron-policy in a file of JSON. A file
// that cannot be read, or that is not wholly understood, is not taken: what was
// loaded before goes on. docs/spec/policy.md §3
type File struct {
	path, region string
	current      atomic.Pointer[bundle]

	mu     sync.Mutex // guards what follows
	text   []byte     // last read
	parsed error      // of text
	seen   os.FileInfo
	quiet  bool  // seen was old enough when read: a later change shows in it
	err    error // of the last attempt, parsed or another
}

// settled is how old a file's time must be when it is read, so that a later
// change of the same length cannot have the same time.
const settled = 2 * time.Second

// OpenFile loads a bundle. The file must be a regular one that not everybody
// may write, of at most 1 MiB.
func OpenFile(path string, o FileOptions) (*File, error) {
	f := &File{path: path, region: o.Region}
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Decide gives the bundle's decision. It asks nobody and has no errors.
func (f *File) Decide(_ context.Context, in Input) (Decision, error) {
	return f.current.Load().decide(&in, f.region), nil
}

// Version is that of the bundle in force.
func (f *File) Version() string { return f.current.Load().version }

// Err is why the file, as it is now, was not taken; nil if it was.
func (f *File) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Reload reads the file now. On an error the bundle in force stays.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.load()
	return err
}

// Watch looks at the file every interval until the context ends, and takes what
// is new. After a look at a new file, taken or not, and when the file can not be
// looked at any more, it calls report with the error, if any.
func (f *File) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if changed, err := f.look(); changed {
				report(err)
			}
		}
	}
}

// look loads the file if it may have changed; changed says whether the outcome
// is another than that of the time before.
func (f *File) look() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st, err := os.Stat(f.path); err == nil && f.quiet && same(st, f.seen) {
		return false, nil
	}
	before := f.err
	changed, err = f.load()
	return changed || text(err) != text(before), err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// load reads and parses the file; changed says whether it has another text than
// the last one read. The caller holds mu.
func (f *File) load() (changed bool, err error) {
	content, st, err := read(f.path, maxBundle)
	f.seen, f.quiet = st, st != nil && time.Since(st.ModTime()) > settled
	if err != nil {
		f.err = fmt.Errorf("policy: file: %w", err)
		return false, f.err
	}
	if f.text == nil || !bytes.Equal(content, f.text) {
		var b *bundle
		if b, f.parsed = parseBundle(content); f.parsed == nil {
			f.current.Store(b)
		}
		f.text, changed = content, true
	}
	f.err = f.parsed
	return changed, f.err
}

// read reads a regular file that nobody changes meanwhile.
func read(path string, limit int64) ([]byte, os.FileInfo, error) {
	// Opening a pipe would wait for its other end.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	if st.Mode().Perm()&0o002 != 0 {
		return nil, nil, errors.New("everybody may write it: chmod o-w")
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(content)) > limit {
		return nil, nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	after, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !same(st, after) {
		return nil, nil, errors.New("it changed while it was read: replace it by renaming another over it")
	}
	return content, st, nil
}
