package audit

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// history is what was found right so far in the records of a log, read in order from wherever they stand: its own files, or an
// export. It checks what the records say about each other, and compares them with the checkpoints.
type history struct {
	origin   string
	sum      *[32]byte // of the format file, which the first record names; nil: it is not known
	chain    notekey.Chain
	onRecord func(uint64, *Record) error
	reload   func() error // reads chain again; nil if it cannot have changed

	notes   *checkpointReader
	next    *checkpoint // read, and not reached by the records yet
	latest  *checkpoint // reached
	before  *checkpoint // the one before latest
	named   bool        // latest is named by a record
	tornGen int         // where an unfinished note begins in the list of checkpoints
	tornAt  int64       // -1: nowhere
	current *checkpoint // the checkpoint file
	curOK   bool
	count   uint64 // checkpoints read

	// The longest prefix of good records.
	size     uint64
	root     [32]byte
	tree     *tree
	kept     uint64 // records before it are pruned
	pruned   uint64 // records before it were given up, as a record says
	keys     *keymap.Table
	keyMap   *keymap.Map   // nil: map roots are not checked
	changes  []timedChange // of keyMap, not applied yet
	pending  map[uint64]*Record
	newest   time.Time
	effect   uint64 // the latest intent that took effect, +1
	seg      int    // where the prefix ends in the ring
	off      int64
	lastTime time.Time
	lastKind Kind
	ckptTime time.Time

	marks []*checkpoint // kept elsewhere, and not reached by the records yet
}

// loadChain reads the successors of the first keys from the file in st, if there is one.
func (h *history) loadChain(st fsys.Dir, first *notekey.Set) error {
	b, err := fsys.ReadFile(st, handoverFile, maxHandovers)
	if err != nil && !notThere(err) {
		return fmt.Errorf("audit: %s: %w", handoverFile, err)
	}
	if h.chain, _, err = notekey.ParseChain(first, b); err != nil {
		return h.fail(VerdictFormat, "%s: %v", handoverFile, err)
	}
	return nil
}

// maxHandovers bounds the file of handovers, in bytes.
const maxHandovers = 1 << 20

// trusts checks that keys, which somebody trusts, are among those that the log has had: each set has signed the next.
func (h *history) trusts(keys *notekey.Set) error {
	if !slices.ContainsFunc(h.chain, func(p notekey.Span) bool { return p.Set.String() == keys.String() }) {
		return h.fail(VerdictFormat, "the log has other keys: %s", h.chain[len(h.chain)-1].Set)
	}
	return nil
}

// checkSig checks that c is signed by the keys that sign for its size.
func (h *history) checkSig(c *checkpoint) error { return c.verify(h.chain.At(c.size)) }

// add takes the next record, encoded, into the history and the tree.
func (h *history) add(b []byte) error {
	r, err := ParseRecord(b)
	if err != nil {
		return h.fail(VerdictTampered, "%v", err)
	}
	if err := h.tree.append(leafHash(b)); err != nil {
		return err
	}
	if err := h.take(h.size, r); err != nil {
		return err
	}
	h.size++
	return h.signed()
}

// addHash takes the leaf hash of the next record, which was pruned, into the tree.
func (h *history) addHash(leaf [32]byte) error {
	if err := h.tree.append(leaf); err != nil {
		return err
	}
	h.size++
	return h.signed()
}

// timedChange is a change of the key map by the record with the given index.
type timedChange struct {
	index uint64
	keymap.Change
}

// fail returns an IntegrityError at the end of the good prefix.
func (h *history) fail(v Verdict, reason string, args ...any) error {
	return &IntegrityError{Verdict: v, Index: h.size, Segment: h.seg, Offset: h.off, Reason: fmt.Sprintf(reason, args...)}
}

// take checks what record r claims about those before it.
func (h *history) take(index uint64, r *Record) error {
	genesis := r.Kind == KindGenesis
	if genesis != (index == 0) || genesis && h.sum != nil && r.InputHash != *h.sum {
		return h.fail(VerdictFormat, "the first record does not belong to this format file")
	}
	if !h.inSequence(index, r) {
		return h.fail(VerdictTampered, "record %d breaks the sequence of its key", index)
	}
	if r.Ref > index {
		return h.fail(VerdictTampered, "record %d answers a later one", index)
	}
	if err := h.checkHandover(index, r); err != nil {
		return err
	}
	if r.Kind == KindCheckpoint || r.Kind == KindOpen {
		if err := h.checkName(index, r); err != nil {
			return err
		}
	}
	if r.Kind == KindMap && h.keyMap != nil {
		if err := h.checkMap(index, r); err != nil {
			return err
		}
	}
	if r.Kind == KindPrune {
		if err := h.takePrune(index, r); err != nil {
			return err
		}
	}
	switch {
	case r.Kind == KindIntent:
		h.pending[index] = r
	case r.Kind == KindOperation && r.Ref > 0:
		delete(h.pending, r.Ref-1)
	}
	if r.effective() {
		h.effect = max(h.effect, r.Ref)
	}
	if r.Time.After(h.newest) {
		h.newest = r.Time
	}
	h.lastTime, h.lastKind = r.Time, r.Kind
	if h.onRecord != nil {
		return h.onRecord(index, r)
	}
	return nil
}

// inSequence takes r into the sequence of its key, and reports whether it continues that.
func (h *history) inSequence(index uint64, r *Record) bool {
	if !r.sequenced() {
		return r.KeySeq == 0 && r.KeyPrev == 0
	}
	slot, k := h.keys.Slot(r.Key)
	switch {
	case k.Last > index: // the snapshot has this record already
		return r.KeySeq > 0 && r.KeySeq <= k.Seq
	case k.Last < r.KeyPrev && r.KeyPrev <= h.kept && k.Seq < r.KeySeq-1:
		k.Seq, k.Last = r.KeySeq-1, r.KeyPrev // its records in between are pruned
	}
	if r.KeySeq != k.Seq+1 || r.KeyPrev != k.Last {
		return false
	}
	k = next(k, r, index)
	h.keys.Set(slot, k)
	if h.keyMap != nil {
		h.changes = append(h.changes, timedChange{index, keymap.Change{Slot: slot, ID: keymap.ID(r.Key), State: k}})
	}
	return true
}

// checkMap compares the root of the key map that record r names with that of the keys after the first r.Ref records.
func (h *history) checkMap(index uint64, r *Record) error {
	n := 0
	for n < len(h.changes) && h.changes[n].index < r.Ref {
		n++
	}
	if err := h.keyMap.Apply(lastChanges(h.changes[:n])); err != nil {
		return err
	}
	h.changes = slices.Delete(h.changes, 0, n)
	if h.keyMap.Root() != r.InputHash || uint64(h.keyMap.Len()) != r.Count {
		return h.fail(VerdictTampered, "record %d names another root of the key map than that of the records", index)
	}
	return nil
}

// lastChanges returns the last change of each slot, in the order of their first.
func lastChanges(cs []timedChange) []keymap.Change {
	at := make(map[uint32]int)
	var out []keymap.Change
	for _, c := range cs {
		if i, ok := at[c.Slot]; ok {
			out[i] = c.Change
			continue
		}
		at[c.Slot] = len(out)
		out = append(out, c.Change)
	}
	return out
}

// checkName checks that record r names the latest checkpoint.
func (h *history) checkName(index uint64, r *Record) error {
	if h.notes == nil || h.latest == nil && h.notes.trimmed {
		return nil // the note that it names is not kept any more
	}
	if h.next == nil && (h.latest == nil || h.latest.size < r.Ref) {
		// The log is being written: the note came after the reader met the end of the file.
		h.notes.reset()
		if err := h.load(); err != nil {
			return err
		}
		if h.next != nil && h.next.late && h.next.size == r.Ref {
			h.before, h.latest, h.next, h.named = h.latest, h.next, nil, false
		}
	}
	if h.latest == nil || r.Ref != h.latest.size || r.InputHash != h.latest.hash() {
		return h.fail(VerdictCheckpoint, "record %d names a checkpoint that is not in the list", index)
	}
	h.named = true
	return nil
}

// load reads the next checkpoint, if there is one.
func (h *history) load() error {
	if h.notes == nil {
		return nil
	}
	c, err := h.notes.next()
	switch {
	case err == io.EOF:
		return nil
	case err == errTornNote:
		h.tornGen, h.tornAt = h.notes.gen, h.notes.off
		return nil
	case err != nil:
		return h.fail(VerdictCheckpoint, "%s: %v", checkpointsName(h.notes.gen), err)
	case h.latest != nil && c.size <= h.latest.size:
		return h.fail(VerdictCheckpoint, "%s: checkpoints are not in order", checkpointsName(h.notes.gen))
	}
	if err := h.checkSig(c); err != nil {
		return h.fail(VerdictCheckpoint, "%s: %v", checkpointsName(h.notes.gen), err)
	}
	h.next = c
	h.count++
	return nil
}

// reach compares the checkpoints with the records so far.
func (h *history) reach() error {
	if err := h.compare(); err != nil {
		return err
	}
	if h.next == nil && h.tornAt < 0 {
		if err := h.load(); err != nil {
			return err
		}
	}
	for h.next != nil && h.next.size <= h.size {
		c := h.next
		if c.size == h.size && c.root != h.root || c.size != h.size && !c.late {
			return h.fail(VerdictForked, "the checkpoint over %d records has another root than the records", c.size)
		}
		if h.latest != nil && !h.named && h.latest.size >= h.kept { // else the record that names it may be pruned
			return h.fail(VerdictCheckpoint, "the checkpoint over %d records is not named by a record", h.latest.size)
		}
		h.before, h.latest, h.next, h.named = h.latest, c, nil, false
		h.ckptTime = h.lastTime
		if err := h.load(); err != nil {
			return err
		}
	}
	if h.latest != nil && h.latest.size == h.current.size {
		h.curOK = bytes.Equal(h.latest.raw, h.current.raw)
	}
	return nil
}

// signed compares the checkpoints with the records so far, at any record.
func (h *history) signed() (err error) {
	if h.next == nil && h.tornAt < 0 {
		if err := h.load(); err != nil {
			return err
		}
	}
	reached := h.next != nil && h.next.size <= h.size
	if !reached && (len(h.marks) == 0 || h.marks[0].size > h.size) {
		return nil
	}
	if h.root, err = h.tree.root(); err != nil {
		return err
	}
	if err := h.compare(); err != nil || !reached {
		return err
	}
	return h.reach()
}

// expect takes checkpoints that were kept elsewhere, to be compared with the records. Their signatures must be right, and
// witnesses may have added theirs.
func (h *history) expect(notes ...[]byte) error {
	for _, raw := range notes {
		c, err := parseCheckpoint(raw, h.origin)
		if err == nil {
			_, _, err = h.chain.At(c.size).VerifyCosigned(raw)
		}
		if err != nil {
			return fmt.Errorf("audit: the checkpoint to compare with: %w", err)
		}
		h.marks = append(h.marks, c)
	}
	slices.SortFunc(h.marks, func(a, b *checkpoint) int { return cmp.Compare(a.size, b.size) })
	return nil
}

// compare compares the records so far with the checkpoints that were kept elsewhere. The caller has set the root.
func (h *history) compare() error {
	for len(h.marks) > 0 && h.marks[0].size <= h.size {
		m := h.marks[0]
		if m.size != h.size || m.root != h.root {
			return h.fail(VerdictForked, "a checkpoint over %d records that was kept elsewhere has another root than these records", m.size)
		}
		h.marks = h.marks[1:]
	}
	return nil
}

// compared checks, at the end of the records, that there was something to compare each of those checkpoints with.
func (h *history) compared() error {
	if n := len(h.marks); n > 0 {
		return h.fail(VerdictStale, "a checkpoint that was kept elsewhere covers %d records", h.marks[n-1].size)
	}
	return nil
}

// cosigned finds the latest checkpoint in st that each witness has cosigned, and expects it in the records.
func (h *history) cosigned(st fsys.Dir, witnesses []note.Verifier) (map[string]uint64, error) {
	if len(witnesses) == 0 {
		return nil, nil
	}
	seen := make(map[string]uint64)
	for _, name := range []string{cosignedFile, checkpointFile} {
		raw, err := fsys.ReadFile(st, name, maxNote)
		if notThere(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("audit: %s: %w", name, err)
		}
		c, err := parseCheckpoint(raw, h.origin)
		if err != nil {
			return nil, h.fail(VerdictCheckpoint, "%s: %v", name, err)
		}
		text, lines, err := h.chain.At(c.size).VerifyCosigned(raw)
		if err != nil {
			return nil, h.fail(VerdictCheckpoint, "%s: %v", name, err)
		}
		for _, w := range witnesses {
			if cosignedBy(w, text, lines) {
				seen[w.Name()] = c.size
			}
		}
		if err := h.expect(raw); err != nil {
			return nil, err
		}
	}
	for _, w := range witnesses {
		if _, ok := seen[w.Name()]; !ok {
			return nil, h.fail(VerdictCheckpoint, "no checkpoint is cosigned by %s", w.Name())
		}
	}
	return seen, nil
}

// cosignedBy reports whether one of the signature lines of a note with this text is by w.
func cosignedBy(w note.Verifier, text string, lines []note.Signature) bool {
	for _, l := range lines {
		b, err := base64.StdEncoding.DecodeString(l.Base64)
		if err == nil && l.Name == w.Name() && l.Hash == w.KeyHash() && len(b) > 4 && w.Verify([]byte(text), b[4:]) {
			return true
		}
	}
	return false
}
