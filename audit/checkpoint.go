package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// maxNote bounds a checkpoint with its signatures, in bytes.
const maxNote = 64 << 10

// checkpoint is a signed statement that the first size records have the given root (C2SP tlog-checkpoint).
type checkpoint struct {
	size uint64
	root [32]byte
	raw  []byte // the signed note
	gen  int    // its place in the list: file and offset
	off  int64
	late bool // written after the reader began
}

func (c *checkpoint) hash() [32]byte { return sha256.Sum256(c.raw) }

// signCheckpoint signs the checkpoint of origin over size records, and checks the signatures as any reader would.
func signCheckpoint(origin string, size uint64, root [32]byte, signers []note.Signer, keys *notekey.Set) (*checkpoint, error) {
	text := origin + "\n" + strconv.FormatUint(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n"
	raw, err := notekey.Sign(text, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	c := &checkpoint{size: size, root: root, raw: raw}
	if err := c.verify(keys); err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return c, nil
}

// verify checks that c is signed by every key, and by nobody else, in the one way to write it.
func (c *checkpoint) verify(keys *notekey.Set) error {
	_, err := keys.Verify(c.raw)
	return err
}

// parseCheckpoint decodes a note without checking its signature. It accepts exactly the three lines that signCheckpoint writes.
func parseCheckpoint(raw []byte, origin string) (*checkpoint, error) {
	text, _, ok := strings.Cut(string(raw), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 {
		return nil, errors.New("checkpoint: not a signed note of three lines")
	}
	if lines[0] != origin {
		return nil, errors.New("checkpoint: of another log")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size == 0 || strconv.FormatUint(size, 10) != lines[1] {
		return nil, errors.New("checkpoint: size is not a canonical number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != 32 || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return nil, errors.New("checkpoint: root is not canonical base64 of 32 bytes")
	}
	return &checkpoint{size: size, root: [32]byte(root), raw: bytes.Clone(raw)}, nil
}

// checkpointReader reads the list of checkpoints: files of signed notes, each followed by an empty line.
type checkpointReader struct {
	st     fsys.Dir
	f      fsys.File
	r      *bufio.Reader
	origin string
	gen    int   // the file
	off    int64 // of the next note
	// The end of the list when reading began. Notes from there on were written meanwhile by a running log.
	lastGen int
	limit   int64
	trimmed bool // older files are gone
}

// newCheckpointReader begins at the given place.
func newCheckpointReader(st fsys.Dir, origin string, gen int, off int64) (*checkpointReader, error) {
	c := &checkpointReader{st: st, origin: origin, gen: gen, off: off, trimmed: gen > 0}
	for c.lastGen = gen; ; c.lastGen++ {
		f, err := st.OpenFile(checkpointsName(c.lastGen), os.O_RDONLY)
		if notThere(err) && c.lastGen > gen {
			c.lastGen--
			break
		}
		if err != nil {
			return nil, err
		}
		c.limit, err = f.Size()
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	var err error
	if c.f, err = st.OpenFile(checkpointsName(gen), os.O_RDONLY); err != nil {
		return nil, err
	}
	c.reset()
	return c, nil
}

// oldestCheckpoints returns the number of the oldest file of the list.
func oldestCheckpoints(st fsys.Dir) (int, error) {
	names, err := st.List()
	if err != nil {
		return 0, err
	}
	oldest := 0
	slices.Sort(names)
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, checkpointPrefix); ok {
			if oldest, err = strconv.Atoi(number); err == nil && checkpointsName(oldest) == name {
				return oldest, nil
			}
		}
	}
	return 0, fs.ErrNotExist
}

func notThere(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func (c *checkpointReader) reset() {
	c.r = bufio.NewReader(io.NewSectionReader(c.f, c.off, 1<<62))
}

func (c *checkpointReader) close() error { return c.f.Close() }

// errTornNote is a last note that was not written whole.
var errTornNote = errors.New("checkpoint: cut short")

// next returns the next note, io.EOF after the last one, or errTornNote if the rest of the list is a note that
// a crash may have left unfinished.
func (c *checkpointReader) next() (*checkpoint, error) {
	var b []byte
	for blanks := 0; blanks < 2; {
		line, err := c.r.ReadSlice('\n')
		b = append(b, line...)
		switch {
		case err == io.EOF:
			f, err := c.st.OpenFile(checkpointsName(c.gen+1), os.O_RDONLY)
			switch {
			case notThere(err) && len(b) == 0:
				return nil, io.EOF
			case notThere(err):
				return nil, errTornNote
			case err != nil:
				return nil, err
			case len(b) > 0:
				return nil, errors.Join(errors.New("checkpoint: cut short, and others follow"), f.Close())
			}
			if err := c.f.Close(); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			c.f, c.off = f, 0
			c.gen++
			c.reset()
			continue
		case err != nil && err != bufio.ErrBufferFull:
			return nil, err
		case len(b) > maxNote:
			return nil, errors.New("checkpoint: too long")
		case string(line) == "\n":
			blanks++
		}
	}
	// Sectors that were lost read as zeros, which no note has, be it in the text or in the signatures. Only the last note can be
	// unfinished.
	if bytes.IndexByte(b, 0) >= 0 {
		if _, err := c.r.Peek(1); err == io.EOF {
			return nil, errTornNote
		}
	}
	n, err := parseCheckpoint(b[:len(b)-1], c.origin)
	if err != nil {
		return nil, err
	}
	n.gen, n.off = c.gen, c.off
	n.late = c.gen > c.lastGen || c.gen == c.lastGen && c.off >= c.limit
	c.off += int64(len(b))
	return n, nil
}
