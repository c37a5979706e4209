package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxAnswer is the longest answer of a TPM, as the kernel has it.
const maxAnswer = 4096

// device is where a TPM is.
type device struct {
	network string // "unix" or "tcp", or "" for a character device
	address string
}

func parseDevice(name string) (device, error) {
	if path, ok := strings.CutPrefix(name, "unix:"); ok && path != "" {
		return device{"unix", path}, nil
	}
	if address, ok := strings.CutPrefix(name, "tcp:"); ok {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return device{}, fmt.Errorf("device %q: %w", name, err)
		}
		return device{"tcp", address}, nil
	}
	if filepath.IsAbs(name) {
		return device{"", name}, nil
	}
	return device{}, fmt.Errorf("device %q is neither an absolute path, unix:PATH nor tcp:HOST:PORT", name)
}

func (d device) socket() bool { return d.network != "" }

// channel carries commands to a TPM and answers back, one after the other. It
// is not used after an error.
type channel interface {
	// exchange sends a command and returns the answer, of at least 10 bytes
	// and as long as it says. It returns when ctx ends.
	exchange(ctx context.Context, command []byte) ([]byte, error)
	// close calls done once no command is under way.
	close(done func())
}

func (d device) open(ctx context.Context) (ch channel, err error) {
	err = retry(ctx, func() (again bool, err error) {
		if d.socket() {
			ch, err = dial(ctx, d)
		} else {
			ch, err = openFile(d.address)
		}
		// A full backlog of a Unix socket, and /dev/tpm0 while another
		// has it open.
		return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EBUSY), err
	})
	if err != nil {
		return nil, fmt.Errorf("open the tpm: %w", err)
	}
	return ch, nil
}

type socketChannel struct{ conn net.Conn }

func dial(ctx context.Context, d device) (channel, error) {
	conn, err := new(net.Dialer).DialContext(ctx, d.network, d.address)
	if err != nil {
		return nil, err
	}
	return socketChannel{conn}, nil
}

func (s socketChannel) exchange(ctx context.Context, command []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := exchange(s.conn, command)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("the tpm did not answer: %w", ctx.Err())
	}
	return answer, err
}

// close does not wait: swtpm finishes with one connection, and so with a
// command that was given up on it, before it takes the next.
func (s socketChannel) close(done func()) {
	s.conn.Close() // nothing is left to be written
	done()
}

// fileChannel is a character device of the kernel. It is opened blocking: a
// write then returns when the TPM has run the command, and a read has all of
// the answer. Neither can be interrupted, so each command has a goroutine.
type fileChannel struct {
	file *os.File
	idle chan struct{} // holds one token; taken while a command runs
}

func openFile(path string) (channel, error) {
	// Not os.OpenFile: it would put the device into non-blocking mode, in
	// which a read that comes before the answer looks like the end of file.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a character device")}
	}
	idle := make(chan struct{}, 1)
	idle <- struct{}{}
	return &fileChannel{file: f, idle: idle}, nil
}

func (c *fileChannel) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		answer []byte
		err    error
	}
	<-c.idle
	results := make(chan result, 1)
	go func() {
		answer, err := exchange(c.file, command)
		c.idle <- struct{}{} // first: close must find it after an answer
		results <- result{answer, err}
	}()
	select {
	case r := <-results:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the tpm did not answer: %w", ctx.Err())
	}
}

func (c *fileChannel) close(done func()) {
	finish := func() {
		c.file.Close() // nothing is left to be written
		done()
	}
	select {
	case <-c.idle: // as after every answer that came
		finish()
	default:
		go func() {
			<-c.idle
			finish()
		}()
	}
}

// exchange writes a command and reads one answer, framed by the size in its
// header (TPM 2.0 Part 1, 18.3: tag, size, response code).
func exchange(rw io.ReadWriter, command []byte) ([]byte, error) {
	if _, err := rw.Write(command); err != nil {
		return nil, fmt.Errorf("send to the tpm: %w", err)
	}
	// The kernel's device gives an answer in one read: the buffer is for all.
	b := make([]byte, maxAnswer)
	n, err := io.ReadAtLeast(rw, b, 10)
	if err != nil {
		return nil, fmt.Errorf("receive from the tpm: %w", err)
	}
	size := int(binary.BigEndian.Uint32(b[2:]))
	if size < 10 || size > maxAnswer || size < n {
		return nil, fmt.Errorf("receive from the tpm: an answer of %d bytes that says %d", n, size)
	}
	if _, err := io.ReadFull(rw, b[n:size]); err != nil {
		return nil, fmt.Errorf("receive from the tpm: %w", err)
	}
	return b[:size], nil
}
