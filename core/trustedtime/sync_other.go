//go:build !linux

package trustedtime

import (
	"errors"
	"fmt"
)

// kernelSync knows of no way to ask: adjtimex(2) as used here is Linux's.
func kernelSync() (synchronized bool, maxErrorMS int64, err error) {
	return false, 0, fmt.Errorf("adjtimex: %w", errors.ErrUnsupported)
}
