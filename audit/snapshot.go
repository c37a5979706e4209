package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/keymap"
)

// A snapshot is where opening begins to read. It says what was known at a place between two frames, all before which is
// packed into tiles:
//
//	"RKAS", version 1, three zero bytes
//	id of the log, 16 bytes
//	records before the place, uint64; root over them, 32 bytes
//	segment, uint64; offset in it, uint64; tag of the frame before, 32 bytes
//	latest checkpoint: file and offset, uint64 each; size, uint64; SHA-256; 1 if a record before the place names it, else 0
//	latest time of a record, microseconds, uint64; latest intent that took effect, +1, uint64; first record that is not pruned, uint64
//	intents without an answer: their number, uint32; each: index, uint64; length, uint16; record
//	keys: their number, uint64; slots (package keymap)
//	HMAC-SHA256 over the magic and the SHA-256 of all before
//
// The keys and intents are those of the place or of some moment after it, because nobody waits while they are copied. They are
// never of a moment whose records are not durable. Replaying a record that they include already changes nothing.
type snapshot struct {
	at      position
	root    [32]byte
	ckpt    checkpointRef
	newest  time.Time
	effect  uint64
	kept    uint64
	pending map[uint64]*Record
	keys    *keymap.Table
}

// checkpointRef names a checkpoint in the list.
type checkpointRef struct {
	gen   int
	off   int64
	size  uint64
	hash  [32]byte
	named bool
}

const (
	snapshotMagic   = "RKAS"
	snapshotVersion = 1
	snapshotChunk   = 8192 // slots copied while others wait
	maxSnapshot     = 1 << 32
)

var errSnapshot = errors.New("not a snapshot of this log")

// snapshotMAC is the tag of a snapshot's body.
func snapshotMAC(mac macFunc, body []byte) ([32]byte, error) {
	sum := sha256.Sum256(body)
	return mac(append([]byte(snapshotMagic), sum[:]...))
}

// encode returns the file of s, with slots in place of its keys.
func (s *snapshot) encode(id [16]byte, slots []keymap.Slot, mac macFunc) ([]byte, error) {
	var w bytes.Buffer
	w.WriteString(snapshotMagic)
	w.Write([]byte{snapshotVersion, 0, 0, 0})
	w.Write(id[:])
	u64 := func(v ...uint64) {
		for _, v := range v {
			w.Write(binary.BigEndian.AppendUint64(nil, v))
		}
	}
	u64(s.at.size)
	w.Write(s.root[:])
	u64(uint64(s.at.segment), uint64(s.at.off))
	w.Write(s.at.tag[:])
	u64(uint64(s.ckpt.gen), uint64(s.ckpt.off), s.ckpt.size)
	w.Write(s.ckpt.hash[:])
	named := byte(0)
	if s.ckpt.named {
		named = 1
	}
	w.WriteByte(named)
	newest := uint64(0)
	if !s.newest.IsZero() {
		newest = uint64(s.newest.UnixMicro())
	}
	u64(newest, s.effect, s.kept)
	w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s.pending))))
	for _, i := range sortedKeys(s.pending) {
		b, err := s.pending[i].AppendBinary(nil)
		if err != nil {
			return nil, err
		}
		u64(i)
		w.Write(binary.BigEndian.AppendUint16(nil, uint16(len(b))))
		w.Write(b)
	}
	u64(uint64(len(slots)))
	if err := keymap.EncodeSlots(&w, slots); err != nil {
		return nil, err
	}
	tag, err := snapshotMAC(mac, w.Bytes())
	if err != nil {
		return nil, err
	}
	w.Write(tag[:])
	return w.Bytes(), nil
}

// parseSnapshot decodes the snapshot of the log with the given id. Without a MAC key it is believed only as far as the
// records bear it out.
func parseSnapshot(b []byte, id [16]byte, mac macFunc) (*snapshot, error) {
	if len(b) < 32 {
		return nil, errSnapshot
	}
	body, tag := b[:len(b)-32], b[len(b)-32:]
	if mac != nil {
		want, err := snapshotMAC(mac, body)
		if err != nil {
			return nil, err
		}
		if !hmac.Equal(want[:], tag) {
			return nil, errSnapshot
		}
	}
	r := bytes.NewReader(body)
	bad := false
	take := func(n int) []byte {
		p := make([]byte, n)
		if k, _ := r.Read(p); k != n {
			bad = true
		}
		return p
	}
	u64 := func() uint64 { return binary.BigEndian.Uint64(take(8)) }
	if string(take(8)) != snapshotMagic+"\x01\x00\x00\x00" || [16]byte(take(16)) != id {
		return nil, errSnapshot
	}
	s := &snapshot{pending: make(map[uint64]*Record)}
	s.at.size = u64()
	s.root = [32]byte(take(32))
	s.at.segment, s.at.off = int(u64()), int64(u64())
	s.at.tag = [32]byte(take(32))
	s.ckpt.gen, s.ckpt.off, s.ckpt.size = int(u64()), int64(u64()), u64()
	s.ckpt.hash = [32]byte(take(32))
	switch take(1)[0] {
	case 0:
	case 1:
		s.ckpt.named = true
	default:
		return nil, errSnapshot
	}
	if us := u64(); us > maxTime {
		return nil, errSnapshot
	} else if us > 0 {
		s.newest = time.UnixMicro(int64(us)).UTC()
	}
	s.effect, s.kept = u64(), u64()
	for n, i := binary.BigEndian.Uint32(take(4)), uint32(0); i < n && !bad; i++ {
		index := u64()
		rec, err := ParseRecord(take(int(binary.BigEndian.Uint16(take(2)))))
		if err != nil || rec.Kind != KindIntent {
			return nil, errSnapshot
		}
		s.pending[index] = rec
	}
	n := u64()
	if bad || n > uint64(r.Len()) || s.at.segment < 0 || s.at.off < 0 || s.at.off%sector != 0 || s.ckpt.gen < 0 || s.ckpt.off < 0 {
		return nil, errSnapshot
	}
	var err error
	if s.keys, err = keymap.Decode(r, n); err != nil || r.Len() != 0 {
		return nil, errSnapshot
	}
	return s, nil
}

// snapshot makes everything that is durable now packed, synced and summed up, so that the ring before it is free. It is called by
// one goroutine at a time.
func (l *Log) snapshot() error {
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return l.err
	}
	s := &snapshot{at: l.end, root: l.root, newest: l.newest, effect: l.effect, kept: l.kept, pending: make(map[uint64]*Record)}
	s.ckpt = checkpointRef{l.latest.gen, l.latest.off, l.latest.size, l.latest.hash(), l.named}
	for i, r := range l.pending {
		if i < s.at.size {
			s.pending[i] = r
		}
	}
	n := l.keys.Len()
	slots := make([]keymap.Slot, n)
	for from := 0; from < n; from += snapshotChunk {
		l.keys.CopySlots(from, slots[from:min(n, from+snapshotChunk)])
		l.mu.Unlock() // others append meanwhile
		l.mu.Lock()
	}
	// What was copied may speak of records that are still on their way to the disk, or that it has refused meanwhile.
	if l.err != nil {
		defer l.mu.Unlock()
		return l.err
	}
	if b := l.cur; l.moved > b.first && b.count > 0 {
		if err := l.await(b); err != nil {
			return err
		}
	} else if b := l.flying; b != nil && l.moved > l.end.size {
		l.mu.Unlock()
		if <-b.done; b.err != nil {
			return b.err
		}
	} else {
		l.mu.Unlock()
	}
	if err := l.tiles.Flush(); err != nil {
		return fmt.Errorf("tiles: %w", err)
	}
	covered, err := l.tiles.Sync()
	if err != nil {
		return fmt.Errorf("tiles: %w", err)
	}
	if covered < s.at.size {
		return fmt.Errorf("tiles: %d of %d records were packed", covered, s.at.size)
	}
	b, err := s.encode(l.disk.f.id, slots, l.disk.mac)
	if err != nil {
		return err
	}
	if err := fsys.ReplaceFile(l.disk.st, snapshotFile, b); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	l.mu.Lock()
	l.saved, l.notesAt = s.at, s.ckpt.gen
	l.mu.Unlock()
	return nil
}
