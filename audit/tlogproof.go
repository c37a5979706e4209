package audit

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit/notekey"
)

// TLogProof returns p as C2SP tlog-proof, with the record as its extra data: the text is all that an auditor needs beside
// the log's public keys.
func (p *Proof) TLogProof() []byte {
	t := proof.TLogProof{Index: p.Index, Checkpoint: p.Checkpoint, ExtraData: p.Record}
	for _, h := range p.Hashes {
		t.Hashes = append(t.Hashes, h)
	}
	return t.Marshal()
}

// maxTLogProof bounds a tlog-proof, in bytes.
const maxTLogProof = 256 << 10

// ParseTLogProof decodes what TLogProof returns, and a tlog-proof without extra data, whose Record is left empty. It refuses any
// other spelling. Nothing is verified: see [Proof.Verify].
func ParseTLogProof(text []byte) (*Proof, error) {
	if len(text) > maxTLogProof {
		return nil, fmt.Errorf("audit: tlog-proof: longer than %d bytes", maxTLogProof)
	}
	var t proof.TLogProof
	if err := t.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if !bytes.Equal(t.Marshal(), text) {
		return nil, errors.New("audit: tlog-proof: not in canonical form")
	}
	p := &Proof{Index: t.Index, Record: t.ExtraData, Checkpoint: t.Checkpoint}
	for _, h := range t.Hashes {
		p.Hashes = append(p.Hashes, tlog.Hash(h))
	}
	return p, nil
}

// CosignedBy reports whether witness w has cosigned p.Checkpoint, which keys must have signed.
func (p *Proof) CosignedBy(w note.Verifier, keys *notekey.Set) bool {
	text, lines, err := keys.VerifyCosigned(p.Checkpoint)
	return err == nil && cosignedBy(w, text, lines)
}
