package tiles

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// A packer writes to the files what Append took into memory.
type packer struct {
	mu sync.Mutex // held by Flush, Sync and Close all the time; guards what follows

	// written is the number of records that were written; those behind synced perhaps not durably. When a Sync fails it falls
	// back to synced: that says nothing about any page written since the last one that succeeded, so all of them are written
	// again.
	written uint64
	done    int // bytes of the partial bundle at synced that are durable
	levels  [levels]levelWriter
	volumes []*volume // those that are not both complete and durable, in order
	made    bool      // a file may have been made since the last successful SyncDir
}

type levelWriter struct {
	file  fsys.File // nil until first written to
	dirty bool
}

type volume struct {
	number uint64
	file   fsys.File // nil until first written to
	table  offsets   // valid up to the end of the last complete bundle that was written
	dirty  bool
}

// A batch is what one Flush or Sync writes. Its slices share the memory of the store.
type batch struct {
	size     uint64 // records with which it ends
	appended uint64 // bytes that the store had then taken since Open
	first    uint64 // number of bundles[0]
	bundles  [][]byte
	hashes   [levels][]piece
}

type piece struct {
	off  int64
	data []byte
}

// Flush writes complete bundles and their hashes to the files. It does not sync; nothing is durable by it.
func (s *Store) Flush() error {
	if s.dir == nil {
		return nil
	}
	s.packer.mu.Lock()
	defer s.packer.mu.Unlock()
	if _, err := s.write(false); err != nil {
		return fmt.Errorf("audit: tiles: flush: %w", err)
	}
	return nil
}

// Sync writes all that was appended before it began, makes it durable, and returns how many records are durable now. After
// an error that is as many as before; the rest stays in memory, and the next Sync writes all of it again.
func (s *Store) Sync() (uint64, error) {
	if s.dir == nil {
		return s.Size(), nil
	}
	p := &s.packer
	p.mu.Lock()
	defer p.mu.Unlock()
	b, err := s.write(true)
	if err == nil {
		err = s.harden()
	}
	if err != nil {
		p.written = s.synced
		return s.synced, fmt.Errorf("audit: tiles: sync: %w", err)
	}
	s.settle(b)
	return b.size, nil
}

// collect returns what is not written yet; if not all, then only complete bundles. The packer is locked.
func (s *Store) collect(all bool) (*batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	from := s.packer.written
	b := &batch{size: s.size, appended: s.appended, first: from / Width}
	if !all {
		b.size -= b.size % Width
	}
	if b.size <= from {
		b.size = from
		return b, nil
	}
	end := (b.size + Width - 1) / Width
	b.bundles = append(b.bundles, s.bundles[b.first-s.first:end-s.first]...)
	for level := range levels {
		c := &s.hashes[level]
		for i, end := from>>(height*level), b.size>>(height*level); i < end; {
			n := min(Width-i%Width, end-i)
			data := c.tiles[i/Width-c.first][i%Width*tlog.HashSize:][:n*tlog.HashSize]
			b.hashes[level] = append(b.hashes[level], piece{int64(i * tlog.HashSize), data})
			i += n
		}
	}
	return b, nil
}

// write writes what is not written yet. The packer is locked.
func (s *Store) write(all bool) (*batch, error) {
	p := &s.packer
	b, err := s.collect(all)
	if err != nil {
		return nil, err
	}
	for i, data := range b.bundles {
		n := b.first + uint64(i)
		if err = s.writeBundle(n, data, b.size >= (n+1)*Width); err != nil {
			break
		}
	}
	for level := 0; level < levels && err == nil; level++ {
		err = s.writeHashes(level, b.hashes[level])
	}
	if err != nil {
		return nil, err
	}
	p.written = b.size
	return b, nil
}

// writeBundle writes bundle n into its volume.
func (s *Store) writeBundle(n uint64, data []byte, complete bool) error {
	v, err := s.volume(n / volumeBundles)
	if err != nil {
		return err
	}
	j, from := n%volumeBundles, 0
	if n == s.synced/Width {
		from = s.packer.done // what is durable is not written again
	}
	v.dirty = true
	if _, err := v.file.WriteAt(data[from:], int64(v.table[j])+int64(from)); err != nil {
		return err
	}
	if complete {
		v.table[j+1] = v.table[j] + uint64(len(data))
	}
	return nil
}

// volume returns volume number n, open for writing.
func (s *Store) volume(n uint64) (*volume, error) {
	p := &s.packer
	var v *volume
	for _, have := range p.volumes {
		if have.number == n {
			v = have
		}
	}
	if v == nil {
		v = &volume{number: n}
		v.table[0] = headerBytes
		p.volumes = append(p.volumes, v)
	}
	var err error
	if v.file == nil {
		v.file, err = s.openWriter(volumeName(n), s.synced > n*volumeRecords)
	}
	return v, err
}

// openWriter opens a file for writing. Only one that holds nothing durable may have to be made.
func (s *Store) openWriter(name string, durable bool) (fsys.File, error) {
	if durable {
		return s.dir.OpenFile(name, os.O_RDWR)
	}
	s.packer.made = true
	return s.dir.OpenFile(name, os.O_RDWR|os.O_CREATE)
}

// writeHashes writes hashes into the file of their level.
func (s *Store) writeHashes(level int, pieces []piece) error {
	if len(pieces) == 0 {
		return nil
	}
	w := &s.packer.levels[level]
	if w.file == nil {
		f, err := s.openWriter(levelName(level), s.synced>>(height*level) > 0)
		if err != nil {
			return err
		}
		w.file = f
		s.mu.Lock()
		if s.hashes[level].file == nil {
			s.hashes[level].file = f
		}
		s.mu.Unlock()
	}
	w.dirty = true
	for _, p := range pieces {
		if _, err := w.file.WriteAt(p.data, p.off); err != nil {
			return err
		}
	}
	return nil
}

// harden makes what was written durable.
func (s *Store) harden() error {
	p := &s.packer
	for _, v := range p.volumes {
		if !v.dirty {
			continue
		}
		if _, err := v.file.WriteAt(v.table.header(v.number), 0); err != nil {
			return err
		}
		if err := v.file.Datasync(); err != nil {
			return err
		}
	}
	for i := range p.levels {
		if w := &p.levels[i]; w.dirty {
			if err := w.file.Datasync(); err != nil {
				return err
			}
		}
	}
	if p.made {
		if err := s.dir.SyncDir(); err != nil {
			return err
		}
	}
	return nil
}

// settle notes that a batch is durable, and drops from memory what can now be read from the files. The partial bundle and
// the partial tiles stay.
func (s *Store) settle(b *batch) {
	p := &s.packer
	p.made = false
	for i := range p.levels {
		p.levels[i].dirty = false
	}
	var open []*volume
	for _, v := range p.volumes {
		v.dirty = false
		if v.number < b.size/volumeRecords {
			// Its bytes are durable: there is nothing that an error could still say.
			_ = v.file.Close()
			continue
		}
		open = append(open, v)
	}
	p.volumes = open

	if b.size%Width == 0 {
		p.done = 0
	} else if len(b.bundles) > 0 {
		p.done = len(b.bundles[len(b.bundles)-1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced, s.covered = b.size, b.appended
	s.dropBundles(b.size / Width)
	for level := range levels {
		s.hashes[level].drop(b.size >> (height * (level + 1)))
	}
}
