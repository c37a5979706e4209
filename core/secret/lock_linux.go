package secret

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// probeLock maps and locks size bytes, and lets them go again.
func probeLock(size int) error {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", size, err)
	}
	defer unix.Munmap(mem) // unlocks too
	if err := unix.Mlock(mem); err != nil {
		limit := "unknown"
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil {
			limit = fmt.Sprint(lim.Cur)
		}
		return fmt.Errorf("lock %d bytes of memory: %w (RLIMIT_MEMLOCK is %s bytes: raise it with ulimit -l,"+
			" LimitMEMLOCK= of systemd or --ulimit memlock= of the container, or ask for a smaller arena)",
			size, err, limit)
	}
	return nil
}

// keepFromChildren makes mem read as zero in forked children. Where the kernel
// or a sandbox does not know that, children do not get the mapping at all.
func keepFromChildren(mem []byte) error {
	err := unix.Madvise(mem, unix.MADV_WIPEONFORK)
	if err != nil {
		err = unix.Madvise(mem, unix.MADV_DONTFORK)
	}
	if err != nil {
		return fmt.Errorf("keep memory from forked children: %w", err)
	}
	return nil
}
