package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// a real TPM keeps what was written, over each kind of socket, across
// openings and across a power cut.
func TestAnchorKeepsTheLatestState(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			e := startTPM(t)
			device := e.device()
			if network == "tcp" {
				device = startRelay(t, e, "tcp", "127.0.0.1:0").device()
			}
			c := testConfig(device, 1)
			a := mustCreate(t, c)
			if got, want := a.Name(), "tpm:01a50002"; got != want {
				t.Errorf("name %q; want %q", got, want)
			}
			_, err := a.Read(t.Context())
			wantErr(t, "read of a new anchor", err, ErrAbsent)
			if _, err := mustOpen(t, c).Read(t.Context()); !errors.Is(err, ErrAbsent) {
				t.Errorf("read of a new anchor that was opened: %v", err)
			}

			// An empty log may be anchored, and closing and opening again
			// are states at one size.
			empty := State{Root: [32]byte{0xe3, 0xb0}}
			mustWrite(t, a, empty)
			wantState(t, a, empty)
			for n := uint64(1); n <= 3; n++ {
				s := testState(n)
				mustWrite(t, a, s)
				wantState(t, a, s)
				s.Closed = true
				mustWrite(t, a, s)
				wantState(t, a, s)
				wantState(t, mustOpen(t, c), s)
			}
			if network == "tcp" {
				return
			}
			for range 2 {
				e.kill()
				e.start()
				want := testState(3)
				want.Closed = true
				wantState(t, a, want)
				wantState(t, mustOpen(t, c), want)
			}
			if h := e.loaded(); len(h) != 0 {
				t.Errorf("left in the tpm: %x", h)
			}
		})
	}
}

// The log never goes back, so an anchor does not either; and one size has one
// root.
func TestWriteRefusesToGoBack(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	a := mustCreate(t, testConfig(e.device(), 1))
	mustWrite(t, a, testState(5))
	fork := testState(5)
	fork.Root[0] ^= 1
	for _, s := range []State{{}, testState(4), fork} {
		wantErr(t, fmt.Sprint(s.Size), a.Write(t.Context(), s), ErrBackward)
	}
	wantState(t, a, testState(5))
	mustWrite(t, a, testState(5))
}

// the data index put back on its own does not pass, not by one write and
// not by one who has the auth value; nor does anything else that writing could
// not have left.
func TestTamperedDataIsRefused(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	a := mustCreate(t, c)
	_, fresh := e.contents(a)
	var old [][]byte
	for n := uint64(1); n <= 4; n++ {
		mustWrite(t, a, testState(n))
		_, b := e.contents(a)
		old = append(old, b)
	}
	now, latest := e.contents(a)
	flip := func(i int) []byte { b := slices.Clone(latest); b[i] ^= 1; return b }
	r := newRecord(testState(9), now)
	at := func(generation uint64) []byte { r := r; r.generation = generation; return r.encode(c.LogID) }
	for _, v := range []struct {
		name string
		data []byte
	}{
		{"one write back", old[2]},
		{"three writes back", old[0]},
		{"back to new", fresh},
		{"two ahead", at(now + 2)},
		{"far ahead", at(1<<64 - 1)},
		{"generation 0", at(0)},
		{"another log's", r.encode([16]byte{1})},
		{"zeros", make([]byte, recordSize)},
		{"ones", bytes.Repeat([]byte{0xff}, recordSize)},
		{"a bit of the size", flip(23)},
		{"a bit of the root", flip(40)},
		{"a bit of the check", flip(63)},
	} {
		e.overwrite(a, v.data)
		t.Run(v.name, func(t *testing.T) { wantRefused(t, a, c, ErrTampered) })
	}
	e.overwrite(a, latest)
	wantState(t, a, testState(4))
}

// The owner of the TPM can take the indices away. That is found out, also where
// the owner puts others in their place.
func TestRemovedIndicesAreNotNew(t *testing.T) {
	t.Parallel()
	redefine := func(e *emulator, ix index, auth []byte) {
		e.undefine(ix)
		e.raw(func(l *link) error { return l.define(ix, tpm2.PasswordAuth(nil), auth) })
	}
	increment := func(e *emulator, ix index, auth []byte) {
		e.raw(func(l *link) error {
			s, err := l.session(tpm2.Auth(auth))
			if err != nil {
				return err
			}
			return l.increment(ix.unwritten(), s)
		})
	}
	other := bytes.Repeat([]byte{7}, 32)
	for _, v := range []struct {
		name string
		do   func(e *emulator, a *Anchor)
		want error
	}{
		{"counter undefined", func(e *emulator, a *Anchor) { e.undefine(a.counter) }, ErrMissing},
		{"data undefined", func(e *emulator, a *Anchor) { e.undefine(a.data) }, ErrMissing},
		{"both undefined", func(e *emulator, a *Anchor) { e.undefine(a.data); e.undefine(a.counter) }, ErrMissing},
		{"tpm cleared", func(e *emulator, a *Anchor) {
			e.raw(func(l *link) error {
				_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{
					Handle: tpm2.TPMRHLockout, Name: tpm2.HandleName(tpm2.TPMRHLockout), Auth: tpm2.PasswordAuth(nil),
				}}.Execute(l)
				return err
			})
		}, ErrMissing},
		{"data of the same auth, unwritten", func(e *emulator, a *Anchor) { redefine(e, a.data, a.auth) }, ErrMissing},
		{"data of another auth, unwritten", func(e *emulator, a *Anchor) { redefine(e, a.data, other) }, ErrMissing},
		{"data of another auth", func(e *emulator, a *Anchor) {
			_, b := e.contents(a)
			redefine(e, a.data, other)
			e.raw(func(l *link) error {
				s, err := l.session(tpm2.Auth(other))
				if err != nil {
					return err
				}
				return l.write(a.data.unwritten(), s, b)
			})
		}, ErrAuth},
		{"counter of another auth", func(e *emulator, a *Anchor) {
			redefine(e, a.counter, other)
			increment(e, a.counter, other)
		}, ErrAuth},
		// It begins above all counters that were: the data is behind it.
		{"counter of the same auth", func(e *emulator, a *Anchor) {
			redefine(e, a.counter, a.auth)
			increment(e, a.counter, a.auth)
		}, ErrTampered},
		{"a plain index in place of the counter", func(e *emulator, a *Anchor) {
			n, _ := e.contents(a)
			plain := a.counter
			plain.kind = tpm2.TPMNTOrdinary
			e.undefine(a.counter)
			e.raw(func(l *link) error {
				if err := l.define(plain, tpm2.PasswordAuth(nil), a.auth); err != nil {
					return err
				}
				s, err := l.session(tpm2.Auth(a.auth))
				if err != nil {
					return err
				}
				return l.write(plain.unwritten(), s, []byte{7: byte(n)})
			})
		}, ErrTampered},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			e := startTPM(t)
			c := testConfig(e.device(), 1)
			a := mustCreate(t, c)
			mustWrite(t, a, testState(1))
			v.do(e, a)
			wantRefused(t, a, c, v.want)
			if strings.HasSuffix(v.name, "undefined") {
				_, err := a.Read(t.Context())
				if err == nil || !strings.Contains(err.Error(), "removed") {
					t.Errorf("the error does not say what may have happened: %v", err)
				}
			}
		})
	}
}

// A wrong auth value opens nothing and removes nothing, and does not bring the
// TPM nearer to lockout; a TPM that others brought into lockout still serves.
func TestWrongAuthAndLockout(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	c.Auth[30], c.Auth[31] = 0, 0 // a TPM drops zeros at the end
	a := mustCreate(t, c)
	mustWrite(t, a, testState(1))

	wrong := c
	wrong.Auth = slices.Clone(c.Auth)
	wrong.Auth[0] ^= 1
	for range 40 {
		_, err := OpenAnchor(t.Context(), wrong)
		wantErr(t, "open", err, ErrAuth)
	}
	wantErr(t, "remove", RemoveAnchor(t.Context(), wrong), ErrAuth)
	if n := e.property(tpm2.TPMPTLockoutCounter); n != 0 {
		t.Errorf("lockout counter %d", n)
	}
	wantState(t, a, testState(1))

	// Somebody else's index, which does count.
	theirs := index{handle: 0x01800001, kind: tpm2.TPMNTOrdinary, size: 8, what: "other"}
	public := theirs.unwritten().public()
	public.Attributes.NoDA = false
	var err error
	for range e.property(tpm2.TPMPTMaxAuthFail) + 2 {
		e.raw(func(l *link) error {
			define := tpm2.NVDefineSpace{AuthHandle: ownerHandle(tpm2.PasswordAuth(nil)), Auth: tpm2.TPM2BAuth{Buffer: []byte("theirs")}, PublicInfo: tpm2.New2B(public)}
			if _, err := define.Execute(l); err != nil && !errors.Is(err, tpm2.TPMRCNVDefined) {
				return err
			}
			name, nameErr := tpm2.NVName(&public)
			if nameErr != nil {
				return nameErr
			}
			h := tpm2.AuthHandle{Handle: theirs.handle, Name: *name, Auth: tpm2.PasswordAuth([]byte("guess"))}
			_, err = tpm2.NVWrite{AuthHandle: h, NVIndex: tpm2.NamedHandle{Handle: theirs.handle, Name: *name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)}}.Execute(l)
			return nil
		})
	}
	wantErr(t, "the tpm is not in lockout, as the test wants it", plain("guess", err), ErrLockout)
	mustWrite(t, a, testState(2))
	wantState(t, mustOpen(t, c), testState(2))
}

// The authorization of the owner is needed to create and to remove, and for
// nothing else.
func TestOwnerAuth(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	e.raw(func(l *link) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: ownerHandle(tpm2.PasswordAuth(nil)), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")}}.Execute(l)
		return err
	})
	c := testConfig(e.device(), 1)
	_, err := CreateAnchor(t.Context(), c)
	wantErr(t, "create without", err, ErrAuth)
	c.OwnerAuth = []byte("owner")
	mustWrite(t, mustCreate(t, c), testState(1))
	c.OwnerAuth = nil
	a := mustOpen(t, c)
	mustWrite(t, a, testState(2))
	wantErr(t, "remove without", RemoveAnchor(t.Context(), c), ErrAuth)
	wantState(t, a, testState(2))
	c.OwnerAuth = []byte("owner")
	if err := RemoveAnchor(t.Context(), c); err != nil {
		t.Error(err)
	}
	wantRefused(t, a, c, ErrMissing)
	if h := e.loaded(); len(h) != 0 {
		t.Errorf("left in the tpm: %x", h)
	}
}

// The owner of the TPM can neither write nor read the indices.
func TestOwnerCannotWrite(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	a := mustCreate(t, testConfig(e.device(), 1))
	mustWrite(t, a, testState(1))
	e.raw(func(l *link) error {
		for _, ix := range []index{a.counter, a.data} {
			_, nv, err := ix.handles(nil)
			if err != nil {
				return err
			}
			owner := ownerHandle(tpm2.PasswordAuth(nil))
			_, err = tpm2.NVRead{AuthHandle: owner, NVIndex: nv, Size: ix.size}.Execute(l)
			wantErr(t, "read "+ix.String(), err, tpm2.TPMRCNVAuthorization)
			_, err = tpm2.NVWrite{AuthHandle: owner, NVIndex: nv, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, ix.size)}}.Execute(l)
			if err == nil {
				t.Errorf("write %s: written", ix)
			}
			_, err = tpm2.NVIncrement{AuthHandle: owner, NVIndex: nv}.Execute(l)
			if err == nil {
				t.Errorf("increment %s: incremented", ix)
			}
		}
		return nil
	})
	wantState(t, a, testState(1))
}

// Two logs share a TPM and nothing else. Where their handles collide the second
// is refused and the first untouched.
func TestTwoLogs(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	one, two := testConfig(e.device(), 1), testConfig(e.device(), 2)
	a, b := mustCreate(t, one), mustCreate(t, two)
	for n := uint64(1); n < 5; n++ {
		mustWrite(t, a, testState(n))
		mustWrite(t, b, testState(10*n))
	}
	wantState(t, a, testState(4))
	wantState(t, b, testState(40))

	third := two
	third.LogID[0] ^= 1
	third.Auth = bytes.Repeat([]byte{9}, 32)
	_, err := CreateAnchor(t.Context(), third)
	wantErr(t, "create at the same handles", err, ErrExists)
	_, err = CreateAnchor(t.Context(), two)
	wantErr(t, "create again", err, ErrExists)
	wantErr(t, "remove by another", RemoveAnchor(t.Context(), third), ErrAuth)
	wantState(t, b, testState(40))
	// Also where only one of the two handles is taken.
	fourth := testConfig(e.device(), 4)
	counter, data, err := fourth.indices()
	if err != nil {
		t.Fatal(err)
	}
	e.raw(func(l *link) error { return l.define(data, tpm2.PasswordAuth(nil), []byte("theirs")) })
	_, err = CreateAnchor(t.Context(), fourth)
	wantErr(t, "create at a taken handle", err, ErrExists)
	e.raw(func(l *link) error {
		_, err := l.public(counter)
		wantErr(t, "the counter, after a creation that was refused", err, ErrMissing)
		_, err = l.public(data)
		return err
	})
	third.Base = DefaultBase + window
	mustWrite(t, mustCreate(t, third), testState(1))

	if err := RemoveAnchor(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, a, one, ErrMissing)
	wantErr(t, "remove again", RemoveAnchor(t.Context(), one), ErrMissing)
	wantState(t, b, testState(40))
}

// Removing and creating takes no counter back: a record from before is refused.
func TestCreateAgainContinuesTheCounter(t *testing.T) {
	t.Parallel()
	e := startTPM(t)
	c := testConfig(e.device(), 1)
	a := mustCreate(t, c)
	for n := uint64(1); n < 5; n++ {
		mustWrite(t, a, testState(n))
	}
	before, record := e.contents(a)
	if err := RemoveAnchor(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b := mustCreate(t, c)
	_, err := b.Read(t.Context())
	wantErr(t, "read", err, ErrAbsent)
	if after, _ := e.contents(b); after <= before {
		t.Errorf("the counter went from %d to %d", before, after)
	}
	e.overwrite(b, record)
	wantRefused(t, b, c, ErrTampered)
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	good := testConfig("unix:/nonexistent/tpm.sock", 1)
	for _, v := range []struct {
		name   string
		change func(*Config)
	}{
		{"no device", func(c *Config) { c.Device = "" }},
		{"relative device", func(c *Config) { c.Device = "dev/tpmrm0" }},
		{"no socket", func(c *Config) { c.Device = "unix:" }},
		{"no port", func(c *Config) { c.Device = "tcp:localhost" }},
		{"no auth", func(c *Config) { c.Auth = nil }},
		{"short auth", func(c *Config) { c.Auth = c.Auth[:31] }},
		{"long auth", func(c *Config) { c.Auth = append(slices.Clone(c.Auth), 1) }},
		{"empty auth, to a tpm", func(c *Config) { c.Auth = make([]byte, 32) }},
		{"base too low", func(c *Config) { c.Base = firstOwned - 1 }},
		{"base too high", func(c *Config) { c.Base = lastOwned - window + 2 }},
	} {
		c := good
		v.change(&c)
		if _, err := newAnchor(c); err == nil {
			t.Errorf("%s: accepted", v.name)
		}
	}
	// All ids stay within the window of the highest base, at distinct pairs.
	good.Base = lastOwned - window + 1
	seen := make(map[tpm2.TPMHandle]bool)
	for i := range window / 2 {
		good.LogID[14], good.LogID[15] = byte(i>>8), byte(i)
		counter, data, err := good.indices()
		if err != nil || seen[counter.handle] || seen[data.handle] || counter.handle < tpm2.TPMHandle(good.Base) || data.handle > lastOwned {
			t.Fatalf("%#x: %v, %v, %v", i, counter, data, err)
		}
		seen[counter.handle], seen[data.handle] = true, true
	}
}
