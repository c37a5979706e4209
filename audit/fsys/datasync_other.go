//go:build !linux

package fsys

import "os"

// datasync uses the strongest sync that the os package knows on this system.
func datasync(f *os.File) error { return f.Sync() }
