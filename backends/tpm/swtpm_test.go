package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/rustyonions/ron-kms/tests/skip"
)

// emulator is a real TPM 2.0 implementation (swtpm, libtpms) in a process of
// its own, with its state in a folder.
type emulator struct {
	t    testing.TB
	dir  string
	sock string
	cmd  *exec.Cmd
	log  bytes.Buffer // read after the process has ended

	relay *relay // has the one connection that the TPM serves, if it is there
}

func startTPM(t testing.TB) *emulator {
	t.Helper()
	skip.Without(t, "swtpm")
	// Not t.TempDir: the path of a Unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &emulator{t: t, dir: dir, sock: filepath.Join(dir, "tpm.sock")}
	e.start()
	t.Cleanup(e.kill)
	return e
}

func (e *emulator) device() string { return "unix:" + e.sock }

// start starts the TPM with the state it has, and waits until it answers.
func (e *emulator) start() {
	e.t.Helper()
	os.Remove(e.sock)
	e.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+e.dir,
		"--server", "type=unixio,path="+e.sock, "--flags", "not-need-init,startup-clear")
	e.cmd.Stdout, e.cmd.Stderr = &e.log, &e.log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("unix", e.sock)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(limit) {
			e.kill()
			e.t.Fatalf("swtpm does not listen: %v: %s", err, &e.log)
		}
		time.Sleep(2 * time.Millisecond) // there is nothing to wait on
	}
}

// kill is a power cut.
func (e *emulator) kill() {
	if e.cmd == nil {
		return
	}
	e.cmd.Process.Kill()
	e.cmd.Wait()
	e.cmd = nil
}

func (e *emulator) signal(s os.Signal) {
	e.t.Helper()
	if err := e.cmd.Process.Signal(s); err != nil {
		e.t.Fatal(err)
	}
}

// raw runs f with a connection of its own, as any other program could.
func (e *emulator) raw(f func(l *link) error) {
	e.t.Helper()
	device := e.device()
	if e.relay != nil {
		device = e.relay.device()
	}
	c, err := newClient(device)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := c.do(context.Background(), f); err != nil {
		e.t.Fatal(err)
	}
}

// undefine removes an index as the owner of the TPM.
func (e *emulator) undefine(ix index) {
	e.t.Helper()
	e.raw(func(l *link) error { return l.undefine(ix, tpm2.PasswordAuth(nil)) })
}

// overwrite writes an index as one who has the auth value.
func (e *emulator) overwrite(a *Anchor, b []byte) {
	e.t.Helper()
	e.raw(func(l *link) error {
		s, err := l.session(tpm2.Auth(a.auth))
		if err != nil {
			return err
		}
		return l.write(a.data, s, b)
	})
}

// contents returns counter and data.
func (e *emulator) contents(a *Anchor) (n uint64, data []byte) {
	e.t.Helper()
	e.raw(func(l *link) error {
		s, err := l.session(tpm2.Auth(a.auth))
		if err != nil {
			return err
		}
		if n, err = l.count(a.counter, s); err != nil {
			return err
		}
		data, err = l.read(a.data, s)
		return err
	})
	return n, data
}

// loaded returns the sessions and keys that are in the TPM.
func (e *emulator) loaded() (handles []tpm2.TPMHandle) {
	e.t.Helper()
	e.raw(func(l *link) error {
		for _, first := range []uint32{0x02000000, 0x80000000} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(l)
			if err != nil {
				return err
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			handles = append(handles, list.Handle...)
		}
		return nil
	})
	return handles
}

func (e *emulator) property(p tpm2.TPMPT) (value uint32) {
	e.t.Helper()
	e.raw(func(l *link) error {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(l)
		if err != nil {
			return err
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil || len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != p {
			return fmt.Errorf("property %#x: %v, %v", p, list, err)
		}
		value = list.TPMProperty[0].Value
		return nil
	})
	return value
}

func testConfig(device string, n byte) Config {
	c := Config{Device: device, LogID: [16]byte{0: 0xa0, 15: n}, Auth: bytes.Repeat([]byte{0x40 | n}, 32)}
	return c
}

// testState is the state after n writes, so to speak.
func testState(n uint64) State {
	s := State{Size: 10 * n}
	binary.BigEndian.PutUint64(s.Root[24:], n)
	return s
}

func mustCreate(t testing.TB, c Config) *Anchor {
	t.Helper()
	a, err := CreateAnchor(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func mustOpen(t testing.TB, c Config) *Anchor {
	t.Helper()
	a, err := OpenAnchor(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func mustWrite(t testing.TB, a *Anchor, s State) {
	t.Helper()
	if err := a.Write(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func wantState(t testing.TB, a *Anchor, want State) {
	t.Helper()
	if got, err := a.Read(t.Context()); err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want: %v", what, err, want)
	}
}

// wantRefused: nothing can be read, opened or written, and that the anchor
// should be new is never the answer.
func wantRefused(t testing.TB, a *Anchor, c Config, want error) {
	t.Helper()
	_, err := a.Read(t.Context())
	wantErr(t, "read", err, want)
	if errors.Is(err, ErrAbsent) {
		t.Errorf("read: %v: taken for new", err)
	}
	wantErr(t, "write", a.Write(t.Context(), testState(1<<40)), want)
	b, err := OpenAnchor(t.Context(), c)
	wantErr(t, "open", err, want)
	if err == nil {
		b.Close()
	}
}
