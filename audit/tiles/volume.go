package tiles

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

const (
	volumeBundles = 256
	volumeRecords = volumeBundles * Width
	headerBytes   = 4096
	tableStart    = 16
	tableEnd      = tableStart + 8*(volumeBundles+1)
	volumeMagic   = "RKAT\x00\x00\x00\x01" // with the version

	minBundle = Width * (2 + 1) // bytes of a complete one
	maxBundle = Width * (2 + MaxRecord)
)

const volumePrefix = "data-"

// volumeName returns the name of the file of a volume.
func volumeName(v uint64) string { return fmt.Sprintf("%s%08d", volumePrefix, v) }

// parseVolumeName is the inverse of volumeName.
func parseVolumeName(name string) (v uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, volumePrefix)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	return v, err == nil && volumeName(v) == name
}

// levelName returns the name of the file of a level of hashes.
func levelName(level int) string { return "level-" + strconv.Itoa(level) }

// An offsets is the table in the header of a volume.
type offsets [volumeBundles + 1]uint64

// header returns the first headerBytes bytes of volume v.
func (t *offsets) header(v uint64) []byte {
	b := make([]byte, 0, headerBytes)
	b = append(b, volumeMagic...)
	b = binary.BigEndian.AppendUint64(b, v)
	for _, off := range t {
		b = binary.BigEndian.AppendUint64(b, off)
	}
	return b[:headerBytes]
}

// readHeader reads the table of volume v. Offsets behind bundles that are not complete may be anything.
func readHeader(f fsys.File, v uint64) (*offsets, error) {
	b := make([]byte, headerBytes)
	if err := readAt(f, b, 0, Entries, v*volumeBundles); err != nil {
		return nil, err
	}
	damaged := string(b[:8]) != volumeMagic || binary.BigEndian.Uint64(b[8:]) != v
	for _, c := range b[tableEnd:] {
		damaged = damaged || c != 0
	}
	var t offsets
	for j := range t {
		t[j] = binary.BigEndian.Uint64(b[tableStart+8*j:])
	}
	if damaged || t[0] != headerBytes {
		return nil, &DamageError{Entries, v * volumeBundles, "the header of the volume is damaged"}
	}
	return &t, nil
}

// readStoredBundle reads the first width records of bundle n from its volume, unchecked. Only if width is Width need
// the bundle be complete.
func readStoredBundle(f fsys.File, t *offsets, n uint64, width int) ([]byte, error) {
	start := t[n%volumeBundles]
	if start < headerBytes || start > math.MaxInt64-maxBundle {
		return nil, &DamageError{Entries, n, "the offset of the bundle is damaged"}
	}
	if width < Width {
		return readPartial(f, start, n, width)
	}
	end := t[n%volumeBundles+1]
	if end < start+minBundle || end > start+maxBundle {
		return nil, &DamageError{Entries, n, "the offset behind the bundle is damaged"}
	}
	b := make([]byte, end-start)
	if err := readAt(f, b, int64(start), Entries, n); err != nil {
		return nil, err
	}
	return b, nil
}

// readPartial reads width records from start on: where they end stands nowhere but in their lengths.
func readPartial(f fsys.File, start, n uint64, width int) ([]byte, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, int64(start), maxBundle), 1<<16)
	var b []byte
	for range width {
		var length [2]byte
		_, err := io.ReadFull(r, length[:])
		if err == nil {
			b = append(b, length[:]...)
			at, size := len(b), int(binary.BigEndian.Uint16(length[:]))
			b = append(b, make([]byte, size)...)
			_, err = io.ReadFull(r, b[at:])
		}
		if err != nil {
			return nil, readError(err, Entries, n)
		}
	}
	return b, nil
}

// withVolume opens the volume of bundle n for reading, and reads its header.
func (s *Store) withVolume(n uint64, do func(fsys.File, *offsets) error) error {
	v := n / volumeBundles
	f, err := s.dir.OpenFile(volumeName(v), os.O_RDONLY)
	if err != nil {
		return readError(err, Entries, n)
	}
	t, err := readHeader(f, v)
	if err == nil {
		err = do(f, t)
	}
	return errors.Join(err, f.Close())
}

// storedBundle returns the first width records of bundle n from its file, unchecked.
func (s *Store) storedBundle(n uint64, width int) (b []byte, err error) {
	err = s.withVolume(n, func(f fsys.File, t *offsets) error {
		b, err = readStoredBundle(f, t, n, width)
		return err
	})
	if err != nil && n*Width < s.Kept() {
		err = ErrPruned // meanwhile
	}
	return b, err
}

// readAt fills b, or says that the tile or bundle is damaged.
func readAt(f fsys.File, b []byte, off int64, level int, n uint64) error {
	got, err := f.ReadAt(b, off)
	if got == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return readError(err, level, n)
}

// readError tells files that are missing or short from disks that fail.
func readError(err error, level int, n uint64) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &DamageError{level, n, "the file is missing"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &DamageError{level, n, "the file is too short"}
	}
	return fmt.Errorf("audit: tiles: %s: %w", Path(level, n, Width), err)
}

// readStoredTile reads the first width hashes of a tile from the file of its level.
func readStoredTile(f fsys.File, level int, n uint64, width int) ([]byte, error) {
	b := make([]byte, width*tlog.HashSize)
	if err := readAt(f, b, int64(n*tileBytes), level, n); err != nil {
		return nil, err
	}
	return b, nil
}
