package audit

import (
	"context"
	"fmt"
	"os"
	"sort"
)

// Read calls fn for each durable record from index from on, in order, up to those that are durable when it is called.
// Frames are authenticated again as they are read. It may run beside Append. It returns the error of fn, and
// one that wraps ErrNotKept for records that a memory log has let go.
func (l *Log) Read(ctx context.Context, from uint64, fn func(index uint64, r *Record) error) error {
	l.mu.Lock()
	size, starts, shut := l.size, l.starts, l.shut
	l.mu.Unlock()
	if shut {
		return fmt.Errorf("audit: read: %w", ErrClosed)
	}
	if from >= size {
		return nil
	}
	if l.disk == nil {
		for i := from; i < size; i++ {
			b, err := l.ring.get(i)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("audit: read: record %d: %w", i, err)
			}
			r, err := ParseRecord(b)
			if err != nil {
				return err
			}
			if err := fn(i, r); err != nil {
				return err
			}
		}
		return nil
	}
	seg := sort.Search(len(starts), func(i int) bool { return starts[i] > from }) - 1
	for ; seg < len(starts) && starts[seg] < size; seg++ {
		if err := l.readSegment(ctx, seg, starts[seg], from, size, fn); err != nil {
			return err
		}
	}
	return nil
}

// readSegment calls fn for the records of a segment, which begins with record next, from index from up to size.
func (l *Log) readSegment(ctx context.Context, seg int, next, from, size uint64, fn func(uint64, *Record) error) error {
	f, err := l.disk.st.openFile(segmentName(seg), os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("audit: read: %w", err)
	}
	defer f.Close()
	buf := make([]byte, l.disk.f.segment)
	if err := readFull(f, buf); err != nil {
		return fmt.Errorf("audit: read: %w", err)
	}
	for len(buf) >= sector && next < size {
		if allZero(buf[:sector]) {
			return nil // the rest of the records is in the next segment
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: read: %w", context.Cause(ctx))
		}
		fr, err := parseFrame(buf, l.disk.limit)
		if err != nil || fr.first != next {
			return fmt.Errorf("audit: read: record %d: %w", next, errFrame)
		}
		if ok, err := authentic(l.disk.mac, buf[:fr.length]); err != nil || !ok {
			return fmt.Errorf("audit: read: record %d: not authentic (%w)", next, errFrame)
		}
		for _, b := range fr.records {
			if next >= from {
				r, err := ParseRecord(b)
				if err != nil {
					return err
				}
				if err := fn(next, r); err != nil {
					return err
				}
			}
			next++
		}
		buf = buf[fr.length:]
	}
	return nil
}
