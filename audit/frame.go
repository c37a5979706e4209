package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// A frame is one group commit, written and synced as one:
//
//	 0  "RKAF"
//	 4  version 1, then three zero bytes
//	 8  length of the whole frame, uint32, a multiple of 512
//	12  number of records, uint32
//	16  index of the first record, uint64
//	24  tag of the previous frame; of the first frame, SHA-256 of the format file
//	56  records, each with its length as uint16
//	    root of the tree after the last record
//	    zeros
//	    HMAC-SHA256 over all of the above: the tag, in the last 32 bytes
//
// Integers are big-endian. The MAC covers the zeros too: not a bit of a frame can change unseen.
const (
	sector        = 512
	frameMagic    = "RKAF"
	frameVersion  = 1
	frameHeader   = 56
	frameOverhead = frameHeader + 32 + 32
	maxFrame      = 1 << 20
	macKeySize    = 32
)

// frame is a decoded frame. Its slices point into the bytes it was parsed from.
type frame struct {
	length  int
	first   uint64
	prev    [32]byte
	records [][]byte
	root    [32]byte
	tag     [32]byte
}

func roundUp(n int) int { return (n + sector - 1) &^ (sector - 1) }

// frameLimit is the largest frame of a log with segments of the given size, in bytes.
func frameLimit(segment int64) int { return int(min(segment, maxFrame)) }

// sealFrame completes buf, which holds room for the header and then count records with their lengths, and
// returns the finished frame and its tag.
func sealFrame(buf []byte, count int, first uint64, prev, root [32]byte, mac macFunc) ([]byte, [32]byte, error) {
	n := roundUp(len(buf) + 64)
	copy(buf, frameMagic)
	buf[4], buf[5], buf[6], buf[7] = frameVersion, 0, 0, 0
	binary.BigEndian.PutUint32(buf[8:], uint32(n))
	binary.BigEndian.PutUint32(buf[12:], uint32(count))
	binary.BigEndian.PutUint64(buf[16:], first)
	copy(buf[24:], prev[:])
	buf = append(buf, root[:]...)
	buf = append(buf, make([]byte, n-32-len(buf))...)
	tag, err := mac(buf)
	return append(buf, tag[:]...), tag, err
}

// nextRecord splits the first length-prefixed record off b.
func nextRecord(b []byte) (rec, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

var errFrame = errors.New("not a whole frame")

// parseFrame decodes the frame at the start of b without judging its MAC, its place or its records. It accepts
// only what sealFrame writes.
func parseFrame(b []byte, limit int) (*frame, error) {
	if len(b) < sector || string(b[:4]) != frameMagic || b[4] != frameVersion || b[5]|b[6]|b[7] != 0 {
		return nil, errFrame
	}
	length := int64(binary.BigEndian.Uint32(b[8:]))
	count := binary.BigEndian.Uint32(b[12:])
	if length%sector != 0 || length == 0 || length > int64(limit) || length > int64(len(b)) || count == 0 || int64(count) > length {
		return nil, errFrame
	}
	f := &frame{length: int(length), first: binary.BigEndian.Uint64(b[16:]), prev: [32]byte(b[24:56])}
	f.records = make([][]byte, 0, count)
	rest := b[frameHeader : f.length-32]
	for range count {
		rec, r, ok := nextRecord(rest)
		if !ok {
			return nil, errFrame
		}
		f.records = append(f.records, rec)
		rest = r
	}
	if len(rest) < 32 || len(rest)-32 >= sector || !allZero(rest[32:]) {
		return nil, errFrame
	}
	f.root = [32]byte(rest)
	f.tag = [32]byte(b[f.length-32 : f.length])
	return f, nil
}

// macFunc computes the HMAC-SHA256 of msg.
type macFunc func(msg []byte) ([32]byte, error)

// borrowedMAC is a macFunc that borrows the key for each call and keeps nothing of it.
func borrowedMAC(lend func(use func(key []byte))) macFunc {
	return func(msg []byte) (tag [32]byte, err error) {
		err = errors.New("audit: the mac key is not available")
		lend(func(key []byte) {
			if len(key) != macKeySize {
				err = errors.New("audit: the mac key is not of 32 bytes")
				return
			}
			h := hmac.New(sha256.New, key)
			h.Write(msg)
			h.Sum(tag[:0])
			err = nil
		})
		return tag, err
	}
}

// authentic reports whether the last 32 bytes of msg are the MAC of the rest, in constant time. Without
// a key (nil mac) it cannot tell and says yes.
func authentic(mac macFunc, msg []byte) (bool, error) {
	if mac == nil {
		return true, nil
	}
	tag, err := mac(msg[:len(msg)-32])
	return err == nil && hmac.Equal(tag[:], msg[len(msg)-32:]), err
}
