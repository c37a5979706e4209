package control

import (
	"net"

	"golang.org/x/sys/unix"
)

// userOf is the user who connected, as the kernel noted it then (SO_PEERCRED).
func userOf(c *net.UnixConn) (uid uint32, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return 0, false
	}
	return cred.Uid, true
}
