package audit

import (
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
)

// tree is the right edge of the Merkle tree (RFC 6962 §2.1): enough to append leaves and to give the root.
type tree struct{ r *compact.Range }

var treeFactory = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

func newTree() *tree { return &tree{treeFactory.NewEmptyRange(0)} }

// append adds a leaf by its hash.
func (t *tree) append(leaf [32]byte) error { return t.r.Append(leaf[:], nil) }

// leafHash is SHA-256(0x00 ‖ record).
func leafHash(record []byte) [32]byte { return [32]byte(rfc6962.DefaultHasher.HashLeaf(record)) }

// treeAt is the tree over size leaves whose right edge has the given hashes, from left to right.
func treeAt(size uint64, edge []tlog.Hash) (*tree, error) {
	hashes := make([][]byte, len(edge))
	for i := range edge {
		hashes[i] = edge[i][:]
	}
	r, err := treeFactory.NewRange(0, size, hashes)
	if err != nil {
		return nil, err
	}
	return &tree{r}, nil
}

// root returns the root over all leaves; that of no leaves is the SHA-256 of nothing.
func (t *tree) root() ([32]byte, error) {
	if t.r.End() == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	h, err := t.r.GetRootHash(nil)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h), nil
}

// clone returns an independent copy, to try leaves that may have to be thrown away.
func (t *tree) clone() (*tree, error) {
	r, err := treeFactory.NewRange(0, t.r.End(), slices.Clone(t.r.Hashes()))
	if err != nil {
		return nil, err
	}
	return &tree{r}, nil
}
