package fsys

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync uses fdatasync: the frames overwrite blocks that exist, so no metadata has to be committed with them.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
