package audit

import (
	"encoding/binary"
)

// The head register says how far the log has been acknowledged. It is a file of two slots, written in turn:
//
//	  0  "RKAH"
//	  4  version 1
//	  5  state: 1 open, 2 closed
//	  6  two zero bytes
//	  8  generation, uint64; it is written to slot generation mod 2
//	 16  number of records, uint64
//	 24  root over them
//	 56  tag of the frame that ends with the last of them
//	 88  id of the log, 16 bytes
//	104  zeros
//	480  HMAC-SHA256 over the 480 bytes before
//
// It is written after the frame is durable and before the caller hears of it, and synced with each checkpoint.
// So it is exact when the process dies, never ahead of the log, and behind by at most a checkpoint interval when
// the machine dies.
const (
	headMagic   = "RKAH"
	headVersion = 1
	headOpen    = 1
	headClosed  = 2
)

type head struct {
	state byte
	gen   uint64
	size  uint64
	root  [32]byte
	tag   [32]byte
}

// encode returns the slot of h in the log called id.
func (h head) encode(id [16]byte, mac macFunc) ([]byte, error) {
	b := make([]byte, sector-32, sector)
	copy(b, headMagic)
	b[4], b[5] = headVersion, h.state
	binary.BigEndian.PutUint64(b[8:], h.gen)
	binary.BigEndian.PutUint64(b[16:], h.size)
	copy(b[24:], h.root[:])
	copy(b[56:], h.tag[:])
	copy(b[88:], id[:])
	tag, err := mac(b)
	return append(b, tag[:]...), err
}

// parseHead decodes the slot with the given number. It returns nil for a slot that is damaged or not of this
// log; an error only if the MAC key is not available.
func parseHead(b []byte, slot uint64, id [16]byte, mac macFunc) (*head, error) {
	ok, err := authentic(mac, b)
	if err != nil || !ok {
		return nil, err
	}
	h := &head{state: b[5], gen: binary.BigEndian.Uint64(b[8:]), size: binary.BigEndian.Uint64(b[16:]),
		root: [32]byte(b[24:]), tag: [32]byte(b[56:])}
	if string(b[:4]) != headMagic || b[4] != headVersion || h.state != headOpen && h.state != headClosed || b[6]|b[7] != 0 ||
		h.gen == 0 || h.gen%2 != slot || h.size == 0 || [16]byte(b[88:]) != id || !allZero(b[104:sector-32]) {
		return nil, nil
	}
	return h, nil
}
