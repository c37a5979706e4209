package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// maxNote bounds a checkpoint with its signatures, in bytes.
const maxNote = 64 << 10

// checkpoint is a signed statement that the first size records have the given root (C2SP tlog-checkpoint).
type checkpoint struct {
	size uint64
	root [32]byte
	raw  []byte // the signed note
	off  int64  // its place in checkpoints.log
}

func (c *checkpoint) hash() [32]byte { return sha256.Sum256(c.raw) }

// signCheckpoint signs the checkpoint of origin over size records, and checks the signature as any reader would.
func signCheckpoint(origin string, size uint64, root [32]byte, s note.Signer, v note.Verifier) (*checkpoint, error) {
	text := origin + "\n" + strconv.FormatUint(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n"
	raw, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	c := &checkpoint{size: size, root: root, raw: raw}
	if err := c.verify(v); err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return c, nil
}

// verify checks that c carries exactly one signature, by v, in the one way to write it.
func (c *checkpoint) verify(v note.Verifier) error {
	n, err := note.Open(c.raw, note.VerifierList(v))
	if err != nil {
		return err
	}
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 {
		return errors.New("signed by other keys too")
	}
	// The base64 of package note tolerates line breaks and stray bits, which would leave bytes that anyone may change.
	sig := n.Sigs[0]
	b, err := base64.StdEncoding.Strict().DecodeString(sig.Base64)
	if err != nil || base64.StdEncoding.EncodeToString(b) != sig.Base64 {
		return errors.New("signature is not canonical base64")
	}
	again := n.Text + "\n— " + sig.Name + " " + sig.Base64 + "\n"
	if again != string(c.raw) {
		return errors.New("signature is not in canonical form")
	}
	return nil
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

// checkpointReader reads checkpoints.log: signed notes, each followed by an empty line.
type checkpointReader struct {
	f      file
	r      *bufio.Reader
	origin string
	off    int64 // of the next note
	// limit is the length of the file when reading began. Notes from there on were written meanwhile by
	// a running log.
	limit int64
}

func newCheckpointReader(f file, origin string) (*checkpointReader, error) {
	n, err := f.size()
	if err != nil {
		return nil, err
	}
	c := &checkpointReader{f: f, origin: origin, limit: n}
	c.reset()
	return c, nil
}

func (c *checkpointReader) reset() {
	c.r = bufio.NewReader(io.NewSectionReader(c.f, c.off, 1<<62))
}

// errTornNote is a last note that was not written whole.
var errTornNote = errors.New("checkpoint: cut short")

// next returns the next note, io.EOF after the last one, or errTornNote if the rest of the file is a note that
// a crash may have left unfinished.
func (c *checkpointReader) next() (*checkpoint, error) {
	var b []byte
	for blanks := 0; blanks < 2; {
		line, err := c.r.ReadSlice('\n')
		b = append(b, line...)
		switch {
		case err == io.EOF && len(b) == 0:
			return nil, io.EOF
		case err == io.EOF:
			return nil, errTornNote
		case err != nil && err != bufio.ErrBufferFull:
			return nil, err
		case len(b) > maxNote:
			return nil, errors.New("checkpoint: too long")
		case string(line) == "\n":
			blanks++
		}
	}
	n, err := parseCheckpoint(b[:len(b)-1], c.origin)
	if err != nil {
		// Sectors that were lost read as zeros, which no note has. Only the last note can be unfinished.
		if _, e := c.r.Peek(1); e == io.EOF && bytes.IndexByte(b, 0) >= 0 {
			return nil, errTornNote
		}
		return nil, err
	}
	n.off = c.off
	c.off += int64(len(b))
	return n, nil
}
