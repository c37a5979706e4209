package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// A record is the content of the data index. 64 bytes, integers big-endian:
//
//	 0   4  "RKTA"
//	 4   1  version: 1
//	 5   1  kind: 1 fresh (no state yet), 2 open, 3 closed
//	 6   2  zeros
//	 8   8  generation
//	16   8  size      \ zeros in a fresh record
//	24  32  root      /
//	56   8  check: the first bytes of SHA-256 over "ron-kms tpm anchor 1\x00",
//	        the id of the log and the 56 bytes before
//
// The check tells a damaged record, or another log's, from a right one. It
// keeps nobody from writing one: the auth value of the index does.
type record struct {
	kind       byte
	generation uint64
	size       uint64
	root       [32]byte
}

const (
	recordSize  = 64
	checkOffset = 56
	checkLabel  = "ron-kms tpm anchor 1\x00"
	recordMagic = "RKTA"

	kindFresh  byte = 1
	kindOpen   byte = 2
	kindClosed byte = 3
)

func newRecord(s State, generation uint64) record {
	r := record{kind: kindOpen, generation: generation, size: s.Size, root: s.Root}
	if s.Closed {
		r.kind = kindClosed
	}
	return r
}

func (r record) state() State {
	return State{Size: r.size, Root: r.root, Closed: r.kind == kindClosed}
}

func (r record) encode(logID [16]byte) []byte {
	b := make([]byte, 0, recordSize)
	b = append(b, recordMagic...)
	b = append(b, 1, r.kind, 0, 0)
	b = binary.BigEndian.AppendUint64(b, r.generation)
	b = binary.BigEndian.AppendUint64(b, r.size)
	b = append(b, r.root[:]...)
	sum := check(logID, b)
	return append(b, sum[:]...)
}

// decode is strict: what it accepts, encode gives back byte for byte.
func decode(b []byte, logID [16]byte) (record, error) {
	if len(b) != recordSize {
		return record{}, errors.New("record: not 64 bytes")
	}
	if check(logID, b[:checkOffset]) != [8]byte(b[checkOffset:]) {
		return record{}, errors.New("record: damaged, or of another log")
	}
	r := record{
		kind:       b[5],
		generation: binary.BigEndian.Uint64(b[8:]),
		size:       binary.BigEndian.Uint64(b[16:]),
		root:       [32]byte(b[24:]),
	}
	switch {
	case string(b[:4]) != recordMagic:
		return record{}, errors.New("record: not an anchor's")
	case b[4] != 1:
		return record{}, errors.New("record: of another version")
	case b[6] != 0 || b[7] != 0:
		return record{}, errors.New("record: malformed")
	case r.kind == kindFresh && (r.size != 0 || r.root != [32]byte{}):
		return record{}, errors.New("record: malformed")
	case r.kind < kindFresh || r.kind > kindClosed:
		return record{}, errors.New("record: malformed")
	}
	return r, nil
}

func check(logID [16]byte, head []byte) [8]byte {
	h := sha256.New()
	h.Write([]byte(checkLabel))
	h.Write(logID[:])
	h.Write(head)
	return [8]byte(h.Sum(nil))
}
