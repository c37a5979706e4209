// Package fsystest is a disk in memory for tests: it can be copied as a crash would leave it, and made to fail.
package fsystest

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// A Disk is a directory in memory that can be copied as a crash would leave it, and made to fail. Names are durable at
// once; data is durable when synced.
type Disk struct {
	Mu     sync.Mutex // guards all of it; held while Fail runs
	Files  map[string]*File
	locked bool
	// Fail, if set, may fail an operation ("write", "sync", "rename", …). For a write it may say how many bytes go through.
	Fail func(op, name string, n int) (int, error)
}

// A File is a file of a Disk.
type File struct {
	Data    []byte // what readers see
	Durable []byte // what survives a power cut
	pending []span // written since the last sync
	name    string
}

// Sector is what a disk writes whole or not at all, in bytes.
const Sector = 512

type span struct{ off, end int64 }

// New returns an empty disk.
func New() *Disk { return &Disk{Files: make(map[string]*File)} }

// Killed returns the disk as a killed process leaves it: all that was written is there.
func (d *Disk) Killed() *Disk {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	return d.killed()
}

func (d *Disk) killed() *Disk {
	c := New()
	for name, f := range d.Files {
		c.Files[name] = &File{Data: append([]byte(nil), f.Data...), Durable: append([]byte(nil), f.Data...)}
	}
	return c
}

// PowerCut returns the disk as a power cut leaves it: of what was not synced, each sector is there or not.
func (d *Disk) PowerCut(rng *rand.Rand) *Disk {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	return d.powerCut(rng)
}

func (d *Disk) powerCut(rng *rand.Rand) *Disk {
	c := New()
	for name, f := range d.Files {
		b := append([]byte(nil), f.Durable...)
		for _, p := range f.pending {
			for off := p.off; off < p.end; {
				end := min(p.end, (off/Sector+1)*Sector, int64(len(f.Data)))
				if off < end && rng.IntN(2) == 0 {
					if grow := end - int64(len(b)); grow > 0 {
						b = append(b, make([]byte, grow)...)
					}
					copy(b[off:end], f.Data[off:end])
				}
				off = (off/Sector + 1) * Sector
			}
		}
		c.Files[name] = &File{Data: append([]byte(nil), b...), Durable: b}
	}
	return c
}

// Inherited returns the disk as the next process on the same machine finds it after a kill: all that was written is there, and what was
// not synced is still not durable.
func (d *Disk) Inherited() *Disk {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	c := New()
	for name, f := range d.Files {
		c.Files[name] = &File{Data: append([]byte(nil), f.Data...), Durable: append([]byte(nil), f.Durable...), pending: append([]span(nil), f.pending...)}
	}
	return c
}

// Crash returns disks of one machine as they are at one moment: after a power cut, or else after a kill. None of them may be locked.
func Crash(rng *rand.Rand, power bool, disks ...*Disk) []*Disk {
	for _, d := range disks {
		d.Mu.Lock()
		defer d.Mu.Unlock()
	}
	out := make([]*Disk, len(disks))
	for i, d := range disks {
		if power {
			out[i] = d.powerCut(rng)
		} else {
			out[i] = d.killed()
		}
	}
	return out
}

func (d *Disk) fail(op, name string, n int) (int, error) {
	if d.Fail == nil {
		return n, nil
	}
	return d.Fail(op, name, n)
}

func (d *Disk) OpenFile(name string, flag int) (fsys.File, error) {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	if _, err := d.fail("open", name, 0); err != nil {
		return nil, err
	}
	f := d.Files[name]
	switch {
	case f == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case f == nil:
		f = &File{name: name}
		d.Files[name] = f
	case flag&os.O_EXCL != 0:
		return nil, fs.ErrExist
	case flag&os.O_TRUNC != 0:
		f = &File{name: name}
		d.Files[name] = f
	}
	f.name = name
	return &handle{d, f}, nil
}

func (d *Disk) Rename(from, to string) error {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	if _, err := d.fail("rename", from, 0); err != nil {
		return err
	}
	if d.Files[from] == nil {
		return fs.ErrNotExist
	}
	d.Files[to] = d.Files[from]
	d.Files[to].name = to
	delete(d.Files, from)
	return nil
}

func (d *Disk) Remove(name string) error {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	if _, err := d.fail("remove", name, 0); err != nil {
		return err
	}
	if d.Files[name] == nil {
		return fs.ErrNotExist
	}
	delete(d.Files, name)
	return nil
}

func (d *Disk) List() ([]string, error) {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	var names []string
	for name := range d.Files {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, nil
}

func (d *Disk) SyncDir() error {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	_, err := d.fail("syncdir", "", 0)
	return err
}

func (d *Disk) Close() error { return nil }

type unlocker struct{ d *Disk }

func (u unlocker) Close() error {
	u.d.Mu.Lock()
	defer u.d.Mu.Unlock()
	u.d.locked = false
	return nil
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

func (d *Disk) Lock(name string, writer bool) (io.Closer, error) {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	if d.Files[name] == nil {
		return nil, fs.ErrNotExist
	}
	if d.locked {
		return nil, fsys.ErrBusy
	}
	if !writer {
		return nopCloser{}, nil
	}
	d.locked = true
	return unlocker{d}, nil
}

// Segments returns the names of the segments, in order.
func (d *Disk) Segments() []string {
	names, _ := d.List()
	var segs []string
	for _, n := range names {
		if strings.HasPrefix(n, "seg-") && !strings.HasSuffix(n, fsys.TmpSuffix) {
			segs = append(segs, n)
		}
	}
	return segs
}

type handle struct {
	d *Disk
	f *File
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.d.Mu.Lock()
	defer h.d.Mu.Unlock()
	if off >= int64(len(h.f.Data)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.Data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.d.Mu.Lock()
	defer h.d.Mu.Unlock()
	n, err := h.d.fail("write", h.f.name, len(p))
	if grow := off + int64(n) - int64(len(h.f.Data)); grow > 0 {
		h.f.Data = append(h.f.Data, make([]byte, grow)...)
	}
	copy(h.f.Data[off:], p[:n])
	if n > 0 {
		h.f.pending = append(h.f.pending, span{off, off + int64(n)})
	}
	if err == nil && n < len(p) {
		err = errors.New("short write")
	}
	return n, err
}

func (h *handle) Datasync() error {
	h.d.Mu.Lock()
	defer h.d.Mu.Unlock()
	if _, err := h.d.fail("sync", h.f.name, 0); err != nil {
		h.f.pending = nil // as Linux does: the pages are marked clean, and lost
		return err
	}
	if grow := len(h.f.Data) - len(h.f.Durable); grow > 0 {
		h.f.Durable = append(h.f.Durable, make([]byte, grow)...)
	}
	h.f.Durable = h.f.Durable[:len(h.f.Data)]
	for _, p := range h.f.pending {
		if p.off < int64(len(h.f.Data)) {
			end := min(p.end, int64(len(h.f.Data)))
			copy(h.f.Durable[p.off:end], h.f.Data[p.off:end])
		}
	}
	h.f.pending = nil
	return nil
}

func (h *handle) Size() (int64, error) {
	h.d.Mu.Lock()
	defer h.d.Mu.Unlock()
	return int64(len(h.f.Data)), nil
}

func (h *handle) Truncate(n int64) error {
	h.d.Mu.Lock()
	defer h.d.Mu.Unlock()
	if _, err := h.d.fail("truncate", h.f.name, 0); err != nil {
		return err
	}
	h.f.Data = h.f.Data[:n]
	return nil
}

func (h *handle) Close() error { return nil }
