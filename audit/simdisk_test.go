package audit

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"sort"
	"strings"
	"sync"
)

// simDisk is a storage in memory that can be copied as a crash would leave it, and made to fail. Names are durable at
// once; data is durable when synced.
type simDisk struct {
	mu     sync.Mutex
	files  map[string]*simFile
	locked bool
	// testOnlyFail, if set, may fail an operation ("write", "sync", "rename", …). For a write it may say how many bytes go through.
	testOnlyFail func(op, name string, n int) (int, error)
}

type simFile struct {
	data    []byte // what readers see
	durable []byte // what survives a power cut
	pending []span // written since the last sync
}

type span struct{ off, end int64 }

func newSimDisk() *simDisk { return &simDisk{files: make(map[string]*simFile)} }

// killed returns the disk as a killed process leaves it: all that was written is there.
func (d *simDisk) killed() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newSimDisk()
	for name, f := range d.files {
		c.files[name] = &simFile{data: append([]byte(nil), f.data...), durable: append([]byte(nil), f.data...)}
	}
	return c
}

// powerCut returns the disk as a power cut leaves it: of what was not synced, each sector is there or not.
func (d *simDisk) powerCut(rng *rand.Rand) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newSimDisk()
	for name, f := range d.files {
		b := append([]byte(nil), f.durable...)
		for _, p := range f.pending {
			for off := p.off; off < p.end; {
				end := min(p.end, (off/sector+1)*sector, int64(len(f.data)))
				if off < end && rng.IntN(2) == 0 {
					if grow := end - int64(len(b)); grow > 0 {
						b = append(b, make([]byte, grow)...)
					}
					copy(b[off:end], f.data[off:end])
				}
				off = (off/sector + 1) * sector
			}
		}
		c.files[name] = &simFile{data: append([]byte(nil), b...), durable: b}
	}
	return c
}

func (d *simDisk) fail(op, name string, n int) (int, error) {
	if d.testOnlyFail == nil {
		return n, nil
	}
	return d.testOnlyFail(op, name, n)
}

func (d *simDisk) openFile(name string, flag int) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.fail("open", name, 0); err != nil {
		return nil, err
	}
	f := d.files[name]
	switch {
	case f == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case f == nil:
		f = new(simFile)
		d.files[name] = f
	case flag&os.O_EXCL != 0:
		return nil, fs.ErrExist
	case flag&os.O_TRUNC != 0:
		f = new(simFile)
		d.files[name] = f
	}
	return &simHandle{d, f, name}, nil
}

func (d *simDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.fail("rename", from, 0); err != nil {
		return err
	}
	if d.files[from] == nil {
		return fs.ErrNotExist
	}
	d.files[to] = d.files[from]
	delete(d.files, from)
	return nil
}

func (d *simDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		return fs.ErrNotExist
	}
	delete(d.files, name)
	return nil
}

func (d *simDisk) list() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.files {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, nil
}

func (d *simDisk) syncDir() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.fail("syncdir", "", 0)
	return err
}

func (d *simDisk) close() error { return nil }

type unlocker struct{ d *simDisk }

func (u unlocker) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	u.d.locked = false
	return nil
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

func (d *simDisk) lock(name string, writer bool) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		return nil, fs.ErrNotExist
	}
	if d.locked {
		return nil, ErrBusy
	}
	if !writer {
		return nopCloser{}, nil
	}
	d.locked = true
	return unlocker{d}, nil
}

// segments returns the names of the segments, in order.
func (d *simDisk) segments() []string {
	names, _ := d.list()
	var segs []string
	for _, n := range names {
		if strings.HasPrefix(n, "seg-") && !strings.HasSuffix(n, tmpSuffix) {
			segs = append(segs, n)
		}
	}
	return segs
}

type simHandle struct {
	d    *simDisk
	f    *simFile
	name string
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if off >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	n, err := h.d.fail("write", h.name, len(p))
	if grow := off + int64(n) - int64(len(h.f.data)); grow > 0 {
		h.f.data = append(h.f.data, make([]byte, grow)...)
	}
	copy(h.f.data[off:], p[:n])
	if n > 0 {
		h.f.pending = append(h.f.pending, span{off, off + int64(n)})
	}
	if err == nil && n < len(p) {
		err = errors.New("short write")
	}
	return n, err
}

func (h *simHandle) datasync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if _, err := h.d.fail("sync", h.name, 0); err != nil {
		h.f.pending = nil // as Linux does: the pages are marked clean, and lost
		return err
	}
	if grow := len(h.f.data) - len(h.f.durable); grow > 0 {
		h.f.durable = append(h.f.durable, make([]byte, grow)...)
	}
	h.f.durable = h.f.durable[:len(h.f.data)]
	for _, p := range h.f.pending {
		if p.off < int64(len(h.f.data)) {
			end := min(p.end, int64(len(h.f.data)))
			copy(h.f.durable[p.off:end], h.f.data[p.off:end])
		}
	}
	h.f.pending = nil
	return nil
}

func (h *simHandle) size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.f.data)), nil
}

func (h *simHandle) truncate(n int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	h.f.data = h.f.data[:n]
	return nil
}

func (h *simHandle) Close() error { return nil }
