package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt maps its file and follows what it finds there: a changed page number,
// count or offset takes it to memory that is not its own, in a goroutine of
// its own where no caller can recover. So the whole structure is checked on
// the bytes of the file, with every bound, before bbolt sees them. What the
// records say is not looked at: the engine authenticates each of them.
//
// The format is bbolt's version 2, in the byte order of the machine:
//
//	page      id u64 | flags u16 | count u16 | overflow u32 | elements…
//	meta      magic u32 | version u32 | page size u32 | flags u32 | root u64 | sequence u64
//	          | freelist u64 | pages u64 | txid u64 | FNV-1a-64 of all that u64
//	branch    position u32 | key size u32 | page u64
//	leaf      flags u32 | position u32 | key size u32 | value size u32
//	bucket    root u64 | sequence u64 | a page, if root is 0
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader    = 16
	metaSize      = 64
	branchElement = 16
	leafElement   = 16
	bucketHeader  = 16

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	flagBucket   = 0x01 // of a leaf element

	minPage, maxPage = 1 << 10, 1 << 16
	// maxDepth is far beyond what any store reaches: a branch has hundreds of
	// children.
	maxDepth = 32
)

var order = binary.NativeEndian

// errStructure is the cause of every complaint about the file's structure.
var errStructure = errors.New("structure is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errStructure}, args...)...)
}

type boltMeta struct {
	pageSize             uint32
	root, freelist, txid uint64
	pages                uint64 // high-water mark: pages from here on are not in use
}

// boltCheck walks a file.
type boltCheck struct {
	r    io.ReaderAt
	meta boltMeta
	used []bool // by page
}

// checkBolt reports whether the file of size bytes is one that bbolt can use
// safely: every page is free or belongs to exactly one place, and everything
// lies inside its page and is in order.
func checkBolt(r io.ReaderAt, size int64) error {
	m, err := newestMeta(r)
	if err != nil {
		return err
	}
	if m.pages < 4 || m.pages > uint64(size)/uint64(m.pageSize) {
		return damaged("it is cut short")
	}
	c := &boltCheck{r: r, meta: m, used: make([]bool, m.pages)}
	c.used[0], c.used[1] = true, true
	if err := c.freelist(); err != nil {
		return err
	}
	if err := c.tree(m.root, nil, nil, 0); err != nil {
		return err
	}
	for id, used := range c.used {
		if !used {
			return damaged("page %d is neither free nor in use", id)
		}
	}
	return nil
}

// newestMeta finds the state that bbolt would open: of the two meta pages the
// valid one of the later transaction. One may be torn by a crash.
func newestMeta(r io.ReaderAt) (best boltMeta, err error) {
	first, ok := readMeta(r, 0)
	found := ok
	if ok {
		best = first
	}
	for size := int64(minPage); size <= maxPage; size *= 2 {
		if ok && size != int64(first.pageSize) {
			continue
		}
		m, valid := readMeta(r, size)
		if valid && int64(m.pageSize) == size && (!found || m.txid > best.txid) {
			best, found = m, true
			break
		}
	}
	if !found {
		return best, damaged("no valid meta page")
	}
	return best, nil
}

func readMeta(r io.ReaderAt, at int64) (m boltMeta, ok bool) {
	b := make([]byte, metaSize)
	if _, err := r.ReadAt(b, at+pageHeader); err != nil {
		return m, false
	}
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	m = boltMeta{
		pageSize: order.Uint32(b[8:]), root: order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]), pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:]),
	}
	return m, order.Uint32(b) == boltMagic && order.Uint32(b[4:]) == boltVersion && order.Uint64(b[56:]) == h.Sum64() &&
		m.pageSize >= minPage && m.pageSize <= maxPage && m.pageSize&(m.pageSize-1) == 0
}

// page reads a page with its overflow and marks all of it as used.
func (c *boltCheck) page(id uint64) (b []byte, flags, count uint16, err error) {
	if id < 2 || id >= c.meta.pages {
		return nil, 0, 0, damaged("page %d is outside", id)
	}
	var h [pageHeader]byte
	if _, err := c.r.ReadAt(h[:], int64(id)*int64(c.meta.pageSize)); err != nil {
		return nil, 0, 0, err
	}
	n := 1 + uint64(order.Uint32(h[12:]))
	if order.Uint64(h[:]) != id || n > c.meta.pages-id {
		return nil, 0, 0, damaged("page %d has a wrong header", id)
	}
	for i := id; i < id+n; i++ {
		if c.used[i] {
			return nil, 0, 0, damaged("page %d is used twice", i)
		}
		c.used[i] = true
	}
	b = make([]byte, n*uint64(c.meta.pageSize))
	if _, err := c.r.ReadAt(b, int64(id)*int64(c.meta.pageSize)); err != nil {
		return nil, 0, 0, err
	}
	return b, order.Uint16(h[8:]), order.Uint16(h[10:]), nil
}

func (c *boltCheck) freelist() error {
	b, flags, count, err := c.page(c.meta.freelist)
	if err != nil {
		return err
	}
	ids, n := b[pageHeader:], uint64(count)
	if count == 0xFFFF { // then the true count is the first element
		n, ids = order.Uint64(ids), ids[8:]
	}
	if flags != flagFreelist || n > uint64(len(ids))/8 {
		return damaged("the list of free pages is malformed")
	}
	for ; n > 0; n, ids = n-1, ids[8:] {
		id := order.Uint64(ids)
		if id < 2 || id >= c.meta.pages || c.used[id] {
			return damaged("page %d cannot be free", id)
		}
		c.used[id] = true
	}
	return nil
}

// tree walks a page whose keys must be from low on and below high; nil is no
// bound.
func (c *boltCheck) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return damaged("it is too deep")
	}
	b, flags, count, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case flagLeaf:
		return c.leaf(b, int(count), low, high, depth)
	case flagBranch:
		return c.branch(b, int(count), low, high, depth)
	}
	return damaged("page %d is of the wrong kind", id)
}

func (c *boltCheck) branch(b []byte, count int, low, high []byte, depth int) error {
	if count == 0 || pageHeader+count*branchElement > len(b) {
		return damaged("a branch has a wrong count")
	}
	keys := make([][]byte, count+1)
	next := pageHeader + count*branchElement
	for i := range count {
		at := pageHeader + i*branchElement
		key, _, err := element(b, at, &next, order.Uint32(b[at:]), order.Uint32(b[at+4:]), 0)
		if err != nil {
			return err
		}
		if !between(key, low, high) || i > 0 && bytes.Compare(keys[i-1], key) >= 0 {
			return damaged("keys are out of order")
		}
		keys[i] = key
	}
	keys[count] = high
	for i := range count {
		child := order.Uint64(b[pageHeader+i*branchElement+8:])
		if err := c.tree(child, keys[i], keys[i+1], depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *boltCheck) leaf(b []byte, count int, low, high []byte, depth int) error {
	if pageHeader+count*leafElement > len(b) {
		return damaged("a leaf has a wrong count")
	}
	var last []byte
	next := pageHeader + count*leafElement
	for i := range count {
		at := pageHeader + i*leafElement
		flags := order.Uint32(b[at:])
		key, value, err := element(b, at, &next, order.Uint32(b[at+4:]), order.Uint32(b[at+8:]), order.Uint32(b[at+12:]))
		if err != nil {
			return err
		}
		if !between(key, low, high) || i > 0 && bytes.Compare(last, key) >= 0 {
			return damaged("keys are out of order")
		}
		last = key
		switch flags {
		case 0:
		case flagBucket:
			if err := c.bucket(value, depth); err != nil {
				return err
			}
		default:
			return damaged("an element is of the wrong kind")
		}
	}
	return nil
}

// bucket walks a nested bucket: a tree of its own, or one leaf in place.
func (c *boltCheck) bucket(value []byte, depth int) error {
	if len(value) < bucketHeader {
		return damaged("a bucket is cut short")
	}
	if root := order.Uint64(value); root != 0 {
		return c.tree(root, nil, nil, depth+1)
	}
	b := value[bucketHeader:]
	if depth > maxDepth || len(b) < pageHeader || order.Uint16(b[8:]) != flagLeaf {
		return damaged("a bucket in place is malformed")
	}
	return c.leaf(b, int(order.Uint16(b[10:])), nil, nil, depth+1)
}

// element cuts key and value out of a page. Their position counts from the
// element itself, which is at an offset of at. bbolt writes them without gaps,
// behind the last element: next is where these must begin, and is moved to
// their end. So a changed count, position or size shows.
func element(b []byte, at int, next *int, pos, keySize, valueSize uint32) (key, value []byte, err error) {
	start := uint64(at) + uint64(pos)
	middle := start + uint64(keySize)
	end := middle + uint64(valueSize)
	if start != uint64(*next) || keySize == 0 || end > uint64(len(b)) {
		return nil, nil, damaged("an element is not in its place")
	}
	*next = int(end)
	return b[start:middle], b[middle:end], nil
}

func between(key, low, high []byte) bool {
	return (low == nil || bytes.Compare(key, low) >= 0) && (high == nil || bytes.Compare(key, high) < 0)
}
