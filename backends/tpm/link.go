package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// operationTimeout bounds a call whose context has no deadline. Chips
	// take tens of milliseconds for a write, and seconds while they test
	// themselves.
	operationTimeout = 10 * time.Second

	// cleanupTimeout bounds what is tidied up after the caller's context
	// has ended.
	cleanupTimeout = 2 * time.Second

	minBackoff = 2 * time.Millisecond
	maxBackoff = 200 * time.Millisecond
)

// client runs operations on a TPM, one at a time, each over a connection of its
// own: swtpm serves one connection at a time, so to keep one would shut the
// others out; and there is nothing to repair after a restart.
type client struct {
	device device

	// turn holds one token; who has it runs, and owns the fields below.
	turn   chan struct{}
	closed bool
	// stale are handles that an operation was cut off from. On a socket,
	// where no kernel frees them, the next operation does.
	stale []tpm2.TPMHandle
}

func newClient(name string) (*client, error) {
	d, err := parseDevice(name)
	if err != nil {
		return nil, err
	}
	c := &client{device: d, turn: make(chan struct{}, 1)}
	c.release()
	return c, nil
}

func (c *client) release() { c.turn <- struct{}{} }

func (c *client) acquire(ctx context.Context) error {
	select {
	case <-c.turn:
	case <-ctx.Done():
		return fmt.Errorf("wait for the operation before: %w", ctx.Err())
	}
	if c.closed {
		c.release()
		return ErrClosed
	}
	return nil
}

// do runs one operation and returns soon after ctx ends, whatever the TPM does.
func (c *client) do(ctx context.Context, operation func(*link) error) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if err := c.acquire(ctx); err != nil {
		return err
	}
	ch, err := c.device.open(ctx)
	if err != nil {
		c.release()
		return err
	}
	l := &link{ctx: ctx, channel: ch, held: c.stale}
	l.flush()
	err = operation(l)
	l.flush()
	c.stale = nil
	if c.device.socket() {
		c.stale = l.held
	}
	// A device may be busy with a command that was given up. The turn is
	// over when it has answered, so that no later command overtakes it.
	ch.close(c.release)
	return err
}

// close frees what is stale, runs last, and keeps later operations out.
func (c *client) close(last func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), operationTimeout)
	defer cancel()
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if len(c.stale) > 0 {
		ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
		defer cancel()
		// If the TPM cannot be reached now, its next reset frees them.
		if ch, err := c.device.open(ctx); err == nil {
			l := &link{ctx: ctx, channel: ch, held: c.stale}
			l.flush()
			closed := make(chan struct{})
			ch.close(func() { close(closed) })
			<-closed // at once: only sockets have what is stale
		}
	}
	c.closed = true
	last()
	return nil
}

// link is a connection for the length of one operation. It is the transport
// that package tpm2 sends its commands by.
type link struct {
	ctx     context.Context // of the operation; Send has no argument for it
	channel channel
	broken  error            // after it nothing can be sent: an answer may be outstanding
	held    []tpm2.TPMHandle // sessions and keys to be flushed
}

func (l *link) hold(h tpm2.TPMHandle) { l.held = append(l.held, h) }

// flush frees what is held. What it could not send stays held.
func (l *link) flush() {
	l.held = slices.DeleteFunc(l.held, func(h tpm2.TPMHandle) bool {
		_, err := tpm2.FlushContext{FlushHandle: h}.Execute(l)
		// If the TPM answers at all, the handle is free: it now is, or was.
		var rc tpm2.TPMRC
		return err == nil || errors.As(err, &rc)
	})
}

// Send sends one command and returns the answer. The answers by which a TPM
// says that it has not run a command and should be asked again are not
// returned: the same bytes are sent again, a little later each time, until the
// context ends.
func (l *link) Send(command []byte) ([]byte, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	var answer []byte
	err := retry(l.ctx, func() (again bool, err error) {
		if answer, err = l.channel.exchange(l.ctx, command); err != nil {
			l.broken = err
			return false, err
		}
		rc := tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:]))
		if !busy(rc) {
			return false, nil
		}
		return true, rc
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// busy are the warnings after which a command may be repeated as it is
// (TPM 2.0 Part 2, 6.6.3). The memory ones are here because others use the
// slots too, for as long as a command or two.
func busy(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCNVRate, tpm2.TPMRCYielded, tpm2.TPMRCTesting,
		tpm2.TPMRCSessionMemory, tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionHandles, tpm2.TPMRCObjectHandles:
		return true
	}
	return false
}

// retry calls f until it does not ask for it again, waiting longer each time.
func retry(ctx context.Context, f func() (again bool, err error)) error {
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		again, err := f()
		if !again {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w; the tpm is busy: %w", ctx.Err(), err)
		}
	}
}
