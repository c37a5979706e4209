package audit

import (
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// tree is the right edge of the Merkle tree (RFC 6962 §2.1): enough to append leaves and to give the root.
type tree struct{ r *compact.Range }

var treeFactory = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

func newTree() *tree { return &tree{treeFactory.NewEmptyRange(0)} }

// append adds the leaf SHA-256(0x00 ‖ record).
func (t *tree) append(record []byte) error {
	return t.r.Append(rfc6962.DefaultHasher.HashLeaf(record), nil)
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
