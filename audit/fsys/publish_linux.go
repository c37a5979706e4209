package fsys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncTree makes all files under dir durable. One sync of the file system costs less than tens of thousands of files.
func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd()))), d.Close())
}

// exchange exchanges two names at once.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.ENOTSUP { // the file system cannot
		return swap(a, b)
	}
	return os.NewSyscallError("renameat2", err)
}
