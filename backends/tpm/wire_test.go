package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Who has the wire can make calls fail and cannot make them lie: an answer that
// was changed, or that is an earlier one, is not taken.
func TestAnswersAreAuthenticated(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	r := unixRelay(t, e)
	c := testConfig(r.device(), 1)
	a := mustCreate(t, c)
	var kept [][]byte // the answers to the reads of state 1
	mustWrite(t, a, testState(1))
	r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
		answer := forward()
		if code == tpm2.TPMCCNVRead {
			kept = append(kept, answer)
		}
		return answer
	})
	wantState(t, a, testState(1))
	mustWrite(t, a, testState(2))
	if len(kept) < 3 {
		t.Fatalf("%d reads seen", len(kept))
	}

	var reads int
	r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
		if code != tpm2.TPMCCNVRead {
			return forward()
		}
		forward()
		reads++
		return kept[reads-1]
	})
	if s, err := a.Read(t.Context()); err == nil {
		t.Errorf("earlier answers were taken: %+v", s)
	}
	for _, v := range []struct {
		name string
		code tpm2.TPMCC
		at   int // from the beginning; parameters of an answer with sessions begin at 14
	}{
		{"parameter", tpm2.TPMCCNVRead, 16},
		{"last byte of the hmac", tpm2.TPMCCNVRead, -1},
		{"write acknowledged", tpm2.TPMCCNVWrite, -1},
		{"increment acknowledged", tpm2.TPMCCNVIncrement, -1},
	} {
		r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
			answer := forward()
			if code == v.code {
				answer[(v.at+len(answer))%len(answer)] ^= 1
			}
			return answer
		})
		if err := a.Write(t.Context(), testState(3)); err == nil {
			t.Errorf("%s: a changed answer was taken", v.name)
		}
	}
	// A command that was swallowed cannot be acknowledged by anyone else.
	var ack []byte
	r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
		answer := forward()
		if code == tpm2.TPMCCNVIncrement {
			ack = answer
		}
		return answer
	})
	mustWrite(t, a, testState(4))
	r.set(func(code tpm2.TPMCC, _ []byte, forward func() []byte) []byte {
		if code == tpm2.TPMCCNVIncrement {
			return ack
		}
		return forward()
	})
	if err := a.Write(t.Context(), testState(5)); err == nil {
		t.Error("a swallowed increment was acknowledged")
	}
	// Malformed frames are errors, not panics.
	for _, answer := range [][]byte{
		{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0},
		{0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0},
		{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0},
		{0x80, 2, 0, 0, 0, 20, 0, 0, 0, 0},
	} {
		r.set(func(tpm2.TPMCC, []byte, func() []byte) []byte { return answer })
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if s, err := a.Read(ctx); err == nil {
			t.Errorf("%x was taken: %+v", answer, s)
		}
		cancel()
	}
	r.set(nil)
	wantState(t, a, testState(5))
}

// Neither creation nor use shows the auth value or the owner's on the wire.
func TestAuthIsNotOnTheWire(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	e.raw(func(l *link) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: ownerHandle(tpm2.PasswordAuth(nil)), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner's password")}}.Execute(l)
		return err
	})
	r := unixRelay(t, e)
	c := testConfig(r.device(), 1)
	c.OwnerAuth = []byte("owner's password")
	// A password can be guessed from what it has authenticated, unless the
	// session has a salt.
	salted := make(map[uint32]bool)
	owned := 0
	r.set(func(code tpm2.TPMCC, command []byte, forward func() []byte) []byte {
		session := 18 // after header, owner and the size of the sessions
		switch code {
		case tpm2.TPMCCStartAuthSession:
			answer := forward()
			salted[binary.BigEndian.Uint32(answer[10:])] = tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:])) != tpm2.TPMRHNull
			return answer
		case tpm2.TPMCCNVUndefineSpace:
			session += 4 // after the index
			fallthrough
		case tpm2.TPMCCNVDefineSpace:
			owned++
			if !salted[binary.BigEndian.Uint32(command[session:])] {
				t.Errorf("command %#x of the owner in a session without salt", code)
			}
		}
		return forward()
	})
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))
	wantState(t, a, testState(1))
	if err := RemoveAnchor(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if owned != 4 {
		t.Errorf("%d commands of the owner", owned)
	}
	wire := r.wire.Bytes()
	root := testState(1).Root
	if !bytes.Contains(wire, root[:]) {
		t.Fatal("the wire was not seen")
	}
	for _, secret := range [][]byte{c.Auth[:8], c.OwnerAuth[:8]} {
		if bytes.Contains(wire, secret) {
			t.Errorf("%x is on the wire", secret)
		}
	}
}
