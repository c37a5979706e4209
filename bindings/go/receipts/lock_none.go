//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package receipts

import (
	"errors"
	"fmt"
	"os"
)

// lock refuses: without flock, a book would not be safe from other programs
// that open its file. Books in memory work.
func lock(string) (*os.File, error) {
	return nil, fmt.Errorf("no flock on this system: %w", errors.ErrUnsupported)
}
