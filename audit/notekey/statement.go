package notekey

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// timestampSize is the length in bytes of the time before an ML-DSA-44 signature.
const timestampSize = 8

// statement is what the text of a C2SP tlog-checkpoint says: the log called origin has size leaves and this root.
type statement struct {
	origin string
	size   uint64
	root   [32]byte
}

// parseStatement accepts the text of a checkpoint in the one form that text writes. Extension lines are refused: ML-DSA-44
// signatures do not cover them, so anyone who can sign with Ed25519 alone could change them.
func parseStatement(text string) (statement, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return statement{}, errors.New("checkpoint: not exactly three lines")
	}
	s := statement{origin: lines[0]}
	if !validOrigin(s.origin) {
		return statement{}, fmt.Errorf("checkpoint: origin %q", s.origin)
	}
	var ok bool
	if s.size, ok = parseSize(lines[1]); !ok {
		return statement{}, fmt.Errorf("checkpoint: size %q is not a number below 2^63 in canonical form", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(s.root) {
		return statement{}, errors.New("checkpoint: root is not base64 of 32 bytes")
	}
	s.root = [32]byte(root)
	// Base64 of the standard library skips carriage returns.
	if s.text() != text {
		return statement{}, errors.New("checkpoint: not in canonical form")
	}
	return s, nil
}

// validOrigin reports whether origin can be an origin line. Unlike the name of a key it may have spaces.
func validOrigin(origin string) bool {
	return origin != "" && len(origin) <= maxName && utf8.ValidString(origin) && !strings.ContainsFunc(origin, unicode.IsControl)
}

// parseSize reads a number of leaves, which tlog-cosignature and the tools around it hold in 63 bits.
func parseSize(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil && n <= math.MaxInt64 && strconv.FormatUint(n, 10) == text
}

func (s statement) text() string {
	return s.origin + "\n" + strconv.FormatUint(s.size, 10) + "\n" + base64.StdEncoding.EncodeToString(s.root[:]) + "\n"
}

// cosignedMessage returns the cosigned_message of tlog-cosignature, which an ML-DSA-44 key called name signs at the time
// t, in seconds since 1970. A checkpoint is the subtree from leaf 0 on.
func (s statement) cosignedMessage(name string, t uint64) []byte {
	// The lengths fit one byte: validName and validOrigin have seen to that.
	m := []byte("subtree/v1\n\x00")
	m = append(append(m, byte(len(name))), name...)
	m = binary.BigEndian.AppendUint64(m, t)
	m = append(append(m, byte(len(s.origin))), s.origin...)
	m = binary.BigEndian.AppendUint64(m, 0)
	m = binary.BigEndian.AppendUint64(m, s.size)
	return append(m, s.root[:]...)
}
