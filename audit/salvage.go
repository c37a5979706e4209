package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// A salvager lends the records behind those that are right that can still be told by themselves: packed ones that have their leaf hash, and
// those of frames that the MAC key authenticates, in the ring and in mirrors. Damage before a record must not hide what it says. That nothing is
// missing between them, nobody can know.
type salvager struct {
	mac      macFunc
	onRecord func(uint64, *Record) error
	from     uint64 // the next record to lend
	n        uint64 // lent

	size     uint64 // records that are right
	tag      [32]byte
	mirrored bool // a mirror has the frame that follows them
}

func (v *salvager) lend(index uint64, b []byte) error {
	r, err := ParseRecord(b)
	if err != nil || index < v.from {
		return nil
	}
	v.from = index + 1
	v.n++
	return v.onRecord(index, r)
}

// run reads what there is of the log in dir and of its mirrors.
func (v *salvager) run(ctx context.Context, dir string, anchors []AnchorOption) (err error) {
	if st, e := fsys.Open(dir); e == nil {
		defer func() { err = errors.Join(err, st.Close()) }()
		if err := v.log(ctx, readOnly{st}); err != nil {
			return err
		}
	}
	for _, a := range anchors {
		m, ok := a.Anchor.(mirrored)
		if !ok || a.Mode != AnchorMirror {
			continue
		}
		if err := m.frames(maxSegmentSize, func(_ []byte, f *frame) error {
			v.mirrored = v.mirrored || f.first == v.size && f.prev == v.tag
			return v.frame(f)
		}); err != nil {
			return fmt.Errorf("audit: anchor %s: %w", a.Anchor.Name(), err)
		}
	}
	return nil
}

func (v *salvager) frame(f *frame) error {
	for i, b := range f.records {
		if err := v.lend(f.first+uint64(i), b); err != nil {
			return err
		}
	}
	return nil
}

func (v *salvager) log(ctx context.Context, st fsys.Dir) error {
	if t := salvageTiles(st, v.mac); t != nil {
		if err := errors.Join(v.packed(ctx, t), t.Close()); err != nil {
			return err
		}
	}
	return v.ring(ctx, st)
}

// salvageTiles opens the packed records, of which there are as many as the snapshot says, or failing that, as there are leaf hashes. It
// returns nil if they cannot be opened.
func salvageTiles(st fsys.Dir, mac macFunc) *tiles.Store {
	var sizes []uint64
	if b, err := fsys.ReadFile(st, snapshotFile, maxSnapshot); err == nil && len(b) > 24 {
		// The MAC vouches for it, whatever log the format file says that this is.
		if s, err := parseSnapshot(b, [16]byte(b[8:]), mac); err == nil {
			sizes = append(sizes, s.at.size)
		}
	}
	if f, err := st.OpenFile("level-0", os.O_RDONLY); err == nil {
		if n, err := f.Size(); err == nil {
			sizes = append(sizes, uint64(n)/32)
		}
		f.Close()
	}
	for _, size := range sizes {
		// Perhaps it is only the edge that is damaged.
		for _, size := range []uint64{size, size - size%tiles.Width} {
			if t, err := tiles.Open(st, size); err == nil && size > 0 {
				return t
			}
		}
	}
	return nil
}

// packed lends packed records.
func (v *salvager) packed(ctx context.Context, t *tiles.Store) error {
	size := t.Size()
	for i := max(v.from, t.Kept()); i < size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: salvage: %w", context.Cause(ctx))
		}
		n := i / tiles.Width
		width := int(min(size-n*tiles.Width, tiles.Width))
		var recs [][]byte
		if b, err := t.Bundle(n, width); err == nil {
			recs, _ = tiles.Split(b, width) // Bundle has checked it
		}
		for end := n*tiles.Width + uint64(width); i < end; i++ {
			var b []byte
			if recs != nil {
				b = recs[i%tiles.Width]
			} else if one, err := t.Record(i); err == nil {
				b = one
			} else {
				continue
			}
			if err := v.lend(i, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// ring lends the records of all frames that are there, in order.
func (v *salvager) ring(ctx context.Context, st fsys.Dir) error {
	names, err := st.List()
	if err != nil {
		return fmt.Errorf("audit: list: %w", err)
	}
	var frames []*frame
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: salvage: %w", context.Cause(ctx))
		}
		if !strings.HasPrefix(name, segmentPrefix) {
			continue
		}
		b, err := fsys.ReadFile(st, name, maxSegmentSize)
		if err != nil {
			continue // an unreadable part hides no other
		}
		for at := 0; at < len(b); at += sector {
			f, err := parseFrame(b[at:], maxFrame)
			if err != nil {
				continue
			}
			ok, err := authentic(v.mac, b[at:at+f.length])
			if err != nil {
				return err
			}
			if ok {
				frames = append(frames, f)
			}
		}
	}
	slices.SortFunc(frames, func(a, b *frame) int { return cmp.Compare(a.first, b.first) })
	for _, f := range frames {
		if err := v.frame(f); err != nil {
			return err
		}
	}
	return nil
}
