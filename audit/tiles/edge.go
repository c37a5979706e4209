package tiles

import "golang.org/x/mod/sumdb/tlog"

// Edge returns the roots of the complete subtrees at the right edge of the tree over all records, from the largest to the
// smallest: what a compact range of it holds.
func (s *Store) Edge() []tlog.Hash {
	s.mu.Lock()
	defer s.mu.Unlock()
	var edge []tlog.Hash
	for k := len(s.edge) - 1; k >= 0; k-- {
		if s.size>>k&1 == 1 {
			edge = append(edge, s.edge[k])
		}
	}
	return edge
}
