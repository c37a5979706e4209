package tiles

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Inclusion returns the proof (RFC 6962 §2.1.1) that record index is in the tree of the first size records, whose root
// the caller trusts. It returns ErrRoot rather than a wrong proof, and ErrNotFound beyond the end of the log.
func (s *Store) Inclusion(index, size uint64, root [32]byte) (tlog.RecordProof, error) {
	if index >= size || size > s.Size() {
		return nil, fmt.Errorf("audit: tiles: inclusion of %d in %d: %w", index, size, ErrNotFound)
	}
	p, err := tlog.ProveRecord(int64(size), int64(index), HashReader(s, size, root))
	if err == nil && len(p) == 0 {
		err = s.checkRoot(size, root)
	}
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: inclusion of %d in %d: %w", index, size, err)
	}
	return p, nil
}

// Consistency returns the proof (RFC 6962 §2.1.2) that the tree of the first size records, whose root the caller
// trusts, begins with that of the first old ones, at least one. It returns ErrRoot rather than a wrong proof, and
// ErrNotFound beyond the end of the log.
func (s *Store) Consistency(old, size uint64, root [32]byte) (tlog.TreeProof, error) {
	if old == 0 || old > size || size > s.Size() {
		return nil, fmt.Errorf("audit: tiles: consistency of %d with %d: %w", old, size, ErrNotFound)
	}
	p, err := tlog.ProveTree(int64(size), int64(old), HashReader(s, size, root))
	if err == nil && len(p) == 0 {
		err = s.checkRoot(size, root)
	}
	if err != nil {
		return nil, fmt.Errorf("audit: tiles: consistency of %d with %d: %w", old, size, err)
	}
	return p, nil
}

// checkRoot stands in where a proof is empty, so that no hash was read to make it.
func (s *Store) checkRoot(size uint64, root [32]byte) error {
	have, err := s.Root(size)
	if err == nil && have != root {
		err = ErrRoot
	}
	return err
}
