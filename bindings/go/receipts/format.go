package receipts

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrCorrupt is matched by errors about a file that is not a book.
var ErrCorrupt = errors.New("receipts: corrupt file")

// header is the first line of a book: docs/spec/receipts.md, The file.
const header = "ron-kms receipts 1"

// encode returns the book's file. The caller holds mu.
func (b *Book) encode() []byte {
	text := append([]byte(header), '\n')
	for i := range b.logs {
		l := &b.logs[i]
		status := "left"
		switch {
		case l.stopped:
			status = "stopped"
		case i == b.current-1:
			status = "current"
		}
		text = fmt.Appendf(text, "log %s %s %d %d\n", l.origin, status, l.size, l.next)
	}
	for e := b.order.Front(); e != nil; e = e.Next() {
		k := e.Value.(keyState)
		text = fmt.Appendf(text, "key %s %d %d\n", k.kid, k.seq, k.index)
	}
	return append(text, "end\n"...)
}

// decode reads a file into b, which is empty.
func (b *Book) decode(text string) error {
	rest, ok := strings.CutPrefix(text, header+"\n")
	if !ok {
		return fmt.Errorf("%w: no header of this version", ErrCorrupt)
	}
	keys := 0
	for n := 2; ; n++ {
		line, after, ok := strings.Cut(rest, "\n")
		if !ok {
			return fmt.Errorf("%w: it ends in line %d", ErrCorrupt, n)
		}
		rest = after
		if line == "end" && rest == "" {
			return nil
		}
		f := strings.Split(line, " ")
		switch {
		case f[0] == "log" && len(f) == 5 && keys == 0:
			ok = b.decodeLog(f[1:])
		case f[0] == "key" && len(f) == 4 && keys < MaxKeys:
			keys++
			ok = b.decodeKey(f[1:])
		default:
			ok = false
		}
		if !ok {
			return fmt.Errorf("%w: line %d", ErrCorrupt, n)
		}
	}
}

func (b *Book) decodeLog(f []string) bool {
	size, err := parseNumber(f[2])
	next, err2 := parseNumber(f[3])
	l := logState{origin: f[0], stopped: f[1] == "stopped", size: size, next: next}
	if err != nil || err2 != nil || !validText(l.origin, maxOrigin) || b.find(l.origin) >= 0 || len(b.logs) == MaxLogs {
		return false
	}
	b.logs = append(b.logs, l)
	switch f[1] {
	case "current", "stopped":
		if b.current > 0 {
			return false
		}
		b.current = len(b.logs)
		return true
	default:
		return f[1] == "left"
	}
}

func (b *Book) decodeKey(f []string) bool {
	seq, err := parseNumber(f[1])
	index, err2 := parseNumber(f[2])
	if err != nil || err2 != nil || b.current == 0 || seq == 0 || index >= b.logs[b.current-1].next ||
		!validText(f[0], maxKID) || strings.Contains(f[0], "#") || b.keys[f[0]] != nil {
		return false
	}
	b.rise(keyState{f[0], seq, index})
	return true
}

// parseNumber reads the only spelling of a number below 2^63.
func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%w: number %q", ErrCorrupt, s)
	}
	return uint64(n), nil
}
