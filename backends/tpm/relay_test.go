package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// relay stands between an anchor and its TPM. Like a resource manager it takes
// many connections and has one to the TPM; and it can meddle.
type relay struct {
	t        testing.TB
	listener net.Listener
	up       net.Conn

	mu     sync.Mutex // one command at a time; guards what follows
	wire   bytes.Buffer
	meddle func(code tpm2.TPMCC, command []byte, forward func() []byte) (answer []byte)
	count  int
}

func startRelay(t testing.TB, e *emulator, network, address string) *relay {
	t.Helper()
	up, err := net.Dial("unix", e.sock)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, listener: l, up: up}
	e.relay = r
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.up.Close()
		running.Wait()
	})
	return r
}

// unixRelay is a relay on a socket beside that of e.
func unixRelay(t testing.TB, e *emulator) *relay {
	return startRelay(t, e, "unix", filepath.Join(e.dir, "relay.sock"))
}

// direct is the TPM to a meddler: its commands come between those of others.
type direct struct{ r *relay }

func (d direct) exchange(_ context.Context, command []byte) ([]byte, error) {
	return exchange(d.r.up, command)
}

func (direct) close(done func()) { done() }

// restart restarts the TPM behind the relay.
func (r *relay) restart(e *emulator) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	e.kill()
	r.up.Close()
	e.start()
	up, err := net.Dial("unix", e.sock)
	if err != nil {
		r.t.Fatal(err)
	}
	r.up = up
}

func (r *relay) device() string {
	return r.listener.Addr().Network() + ":" + r.listener.Addr().String()
}

func (r *relay) serve(conn io.ReadWriteCloser) {
	defer conn.Close()
	for {
		command, err := frame(conn)
		if err != nil {
			return
		}
		answer := r.run(command)
		if answer == nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// run returns the answer to one command, or nil to hang up.
func (r *relay) run(command []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	forward := func() []byte {
		r.wire.Write(command)
		if _, err := r.up.Write(command); err != nil {
			return nil
		}
		answer, err := frame(r.up)
		if err != nil {
			return nil
		}
		r.wire.Write(answer)
		return answer
	}
	r.count++
	if r.meddle == nil {
		return forward()
	}
	return r.meddle(tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])), command, forward)
}

// set puts a meddler in place and begins to count commands anew.
func (r *relay) set(meddle func(code tpm2.TPMCC, command []byte, forward func() []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.meddle, r.count = meddle, 0
}

func (r *relay) commands() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

func frame(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < 10 || size > maxAnswer {
		return nil, errors.New("bad frame")
	}
	b = append(b, make([]byte, size-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}

// warning is an answer that has only a response code.
func warning(rc tpm2.TPMRC) []byte {
	b := []byte{0x80, 0x01, 0, 0, 0, 10}
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}
