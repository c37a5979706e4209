//go:build !linux

package secret

// probeLock finds out nothing here: memguard locks the memory, and panics if
// it cannot.
func probeLock(int) error { return nil }

// keepFromChildren does nothing: MADV_WIPEONFORK is Linux's.
func keepFromChildren([]byte) error { return nil }
