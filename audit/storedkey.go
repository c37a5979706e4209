package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// StoredVerifierKey reads the public key that the log in dir names for itself, as C2SP vkey text. It is a convenience: a log
// that somebody forged names the forger's key, so compare it with one from elsewhere before believing what it verifies.
func StoredVerifierKey(dir string) (vkey string, err error) {
	st, err := openStorage(dir)
	if err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	defer func() { err = errors.Join(err, st.close()) }()
	f, err := st.openFile(formatFile, os.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	if err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	parsed, err := parseFormat(b)
	if err != nil {
		return "", fmt.Errorf("audit: %s: %w", formatFile, err)
	}
	return parsed.vkey, nil
}
