package witness

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
)

// A request asks to cosign a checkpoint (tlog-witness, add-checkpoint). On the wire each line ends in a line feed:
//
//	old <size of the tree the witness last cosigned>
//	<hash of the consistency proof in base64>   up to 63 times
//	<empty line>
//	<checkpoint, a signed note>
type request struct {
	old        uint64
	proof      [][]byte
	checkpoint []byte
}

func (r *request) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", r.old)
	for _, h := range r.proof {
		b.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
	}
	b.WriteByte('\n')
	b.Write(r.checkpoint)
	return b.Bytes()
}

// parseRequest reads one. The checkpoint is not looked at.
func parseRequest(b []byte) (*request, error) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	text, isOld := bytes.CutPrefix(line, []byte("old "))
	if !ok || !isOld {
		return nil, errors.New("the first line is not \"old <size>\"")
	}
	old, err := parseSize(string(text))
	if err != nil {
		return nil, err
	}
	r := &request{old: old}
	for {
		if line, rest, ok = bytes.Cut(rest, []byte("\n")); !ok {
			return nil, errors.New("no empty line before the checkpoint")
		}
		if len(line) == 0 {
			r.checkpoint = rest
			return r, nil
		}
		// The length is checked because the decoder skips carriage returns.
		h, err := base64.StdEncoding.Strict().DecodeString(string(line))
		if err != nil || len(line) != hashLength || len(h) != hashSize {
			return nil, errors.New("a line of the proof is not a hash in base64")
		}
		if len(r.proof) == maxProof {
			return nil, fmt.Errorf("the proof has more than %d hashes", maxProof)
		}
		r.proof = append(r.proof, h)
	}
}

// parseSize reads a tree size: decimal digits without leading zeros, below 2^63.
func parseSize(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, errors.New("not a tree size")
	}
	return n, nil
}
