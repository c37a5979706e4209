// Package tpm keeps the anchor of an audit log in the NV memory of a TPM 2.0:
// the size and root of the log at its latest checkpoint, where a restored disk
// does not put them back.
//
// # What it holds
//
// Each log has two NV indices. Both are written and read with one auth value
// that only the log's custodian can derive; neither can be written by the owner
// of the TPM.
//
//	counter  8 bytes, TPM_NT_COUNTER: it only ever goes up. One that is defined
//	         anew starts above every counter this TPM has had (TPM 2.0 Part 1,
//	         NV counters), so removing and defining it takes nothing back.
//	data     64 bytes, an ordinary index, written as a whole: see record.
//
// # Order of writing
//
// A write first puts a record with generation counter+1 into data and then
// increments counter. So there are two right states, and no other:
//
//	generation == counter      at rest
//	generation == counter + 1  stopped between the two; the record is complete
//	                           and stands, and the next write has the same
//	                           generation
//
// A record of an earlier generation is refused however it came there. A record
// that was stopped before it was in data is as if never written, which its
// writer was told by an error.
//
// # What it catches, and what not
//
// It catches a log that was put back to an earlier state, if the TPM was not.
// Every answer that counts is authenticated by the TPM with the auth value, so
// who can change what goes over the bus or the socket can make reads fail, but
// not lie. The owner of the TPM can remove the indices, and is then found out:
// an index that is not there is ErrMissing, never ErrAbsent. Who has the auth
// value can write what they like. An emulated TPM is only as safe from being
// put back as the folder that holds its state.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// State is what an anchor remembers of a log.
type State struct {
	Size   uint64   // records in the log
	Root   [32]byte // root of the tree over them
	Closed bool     // the log was closed after the last of them
}

// The errors that callers tell apart. Others are of the device or the context.
var (
	// ErrAbsent: the anchor was created and no state was ever written. This
	// is authenticated. For a log that has checkpoints it means that the
	// anchor was replaced.
	ErrAbsent = errors.New("the anchor was never written")

	// ErrMissing: an index is not defined, or was defined and not finished.
	// The indices were removed, the TPM was cleared, it is another TPM, or
	// the creation was cut off.
	ErrMissing = errors.New("the anchor is not in this tpm")

	// ErrExists: there already is an index at one of the handles.
	ErrExists = errors.New("an nv index is already defined")

	// ErrTampered: what is in the TPM cannot have come there by writing and
	// by being interrupted.
	ErrTampered = errors.New("the anchor was tampered with")

	// ErrAuth: the auth value is not that of the index, or OwnerAuth not
	// that of the owner.
	ErrAuth = errors.New("the tpm refused the authorization")

	// ErrLockout: the TPM is in lockout after too many wrong authorizations
	// (by others: the indices of an anchor do not count towards it).
	ErrLockout = errors.New("the tpm is in lockout: wait, or reset it with the lockout authorization")

	// ErrBackward: the state to write is smaller than the one that is
	// anchored, or has another root at the same size.
	ErrBackward = errors.New("the state is not ahead of the anchored one")

	// ErrClosed: the anchor was closed.
	ErrClosed = errors.New("the anchor is closed")
)

// DefaultBase is the base that Config has when it names none.
const DefaultBase = 0x01A50000

// The NV handles of the TCG registry (TCG Registry of Reserved TPM 2.0 Handles)
// that owners may use, and how many an anchor picks its pair from.
const (
	firstOwned = 0x01800000
	lastOwned  = 0x01BFFFFF
	window     = 0x00010000
)

// Config says where an anchor is and with what it is opened.
type Config struct {
	// Device is a TPM: an absolute path ("/dev/tpmrm0"), "unix:PATH" or
	// "tcp:HOST:PORT". The sockets speak bare TPM commands, as the data
	// channel of swtpm does. Prefer /dev/tpmrm0 to /dev/tpm0: its kernel
	// side frees what a process that died left in the TPM.
	Device string

	// LogID is the id of the log. Its last 15 bits choose the handles.
	LogID [16]byte

	// Auth is the auth value of the indices: 32 bytes, not all zero,
	// derived from a secret of the store and from the log's id. It is
	// copied.
	Auth []byte

	// Base is the first of the 65536 NV handles that the two are chosen
	// from: 0 for DefaultBase, or 0x01800000 to 0x01BF0000.
	Base uint32

	// OwnerAuth is the authorization of the TPM's owner, empty in most
	// machines. Only CreateAnchor and RemoveAnchor use it.
	OwnerAuth []byte
}

// indices checks c and returns its two indices.
func (c Config) indices() (counter, data index, err error) {
	base := c.Base
	if base == 0 {
		base = DefaultBase
	}
	if base < firstOwned || base > lastOwned-window+1 {
		return index{}, index{}, fmt.Errorf("base %#08x is outside of the handles %#08x to %#08x", base, firstOwned, lastOwned-window+1)
	}
	if len(c.Auth) != 32 {
		return index{}, index{}, fmt.Errorf("auth value of %d bytes: want 32", len(c.Auth))
	}
	// To a TPM, zeros at the end of an auth value are nothing.
	if !slices.ContainsFunc(c.Auth, func(b byte) bool { return b != 0 }) {
		return index{}, index{}, errors.New("the auth value is all zero")
	}
	pair := uint32(c.LogID[14]&0x7f)<<8 | uint32(c.LogID[15])
	counter = index{handle: tpm2.TPMHandle(base + 2*pair), kind: tpm2.TPMNTCounter, size: counterSize, what: "counter"}
	data = index{handle: tpm2.TPMHandle(base + 2*pair + 1), kind: tpm2.TPMNTOrdinary, size: recordSize, what: "data"}
	return counter, data, nil
}

// Anchor is an open anchor. Its methods may be called concurrently; they run
// one after the other. Between calls it holds no connection and nothing in the
// TPM, so it outlives restarts of either.
//
// Only one process may write to an anchor at a time: the lock on the log is
// that of its anchor too. Others may read.
type Anchor struct {
	client        *client
	logID         [16]byte
	auth          []byte // zeroed by Close, under the client's turn
	counter, data index
}

// OpenAnchor opens the anchor that CreateAnchor made, and never makes one. It
// reads it once, so that it fails with what Read would fail with, except
// ErrAbsent.
func OpenAnchor(ctx context.Context, c Config) (*Anchor, error) {
	a, err := newAnchor(c)
	if err != nil {
		return nil, fmt.Errorf("tpm: anchor: %w", err)
	}
	if _, err := a.read(ctx); err != nil {
		return nil, errors.Join(a.wrap("open", err), a.Close())
	}
	return a, nil
}

// CreateAnchor defines the two indices of a new log and opens the anchor, which
// then is ErrAbsent. It fails with ErrExists, and touches nothing, if one of
// them is defined. If it fails later it takes back what it did; if it cannot,
// as after a crash, RemoveAnchor does.
func CreateAnchor(ctx context.Context, c Config) (*Anchor, error) {
	a, err := newAnchor(c)
	if err != nil {
		return nil, fmt.Errorf("tpm: anchor: %w", err)
	}
	var began bool
	err = a.client.do(ctx, func(l *link) error {
		for _, ix := range []index{a.counter, a.data} {
			if _, err := l.public(ix); err == nil {
				return fmt.Errorf("%w at %s", ErrExists, ix)
			} else if !errors.Is(err, ErrMissing) {
				return err
			}
		}
		began = true
		return a.define(l, c.OwnerAuth)
	})
	if err == nil {
		return a, nil
	}
	err = a.wrap("create", err)
	if began && !errors.Is(err, ErrExists) {
		// What failed may be the context or the connection: use others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if undo := a.remove(ctx, c.OwnerAuth); undo != nil && !errors.Is(undo, ErrMissing) {
			err = errors.Join(err, a.wrap("take back what was created", undo))
		}
	}
	return nil, errors.Join(err, a.Close())
}

// RemoveAnchor removes the indices of a log that is at its end, or what an
// interrupted creation left of them. It fails with ErrMissing if there are
// none, and removes nothing that it cannot open with c.Auth.
func RemoveAnchor(ctx context.Context, c Config) error {
	a, err := newAnchor(c)
	if err != nil {
		return fmt.Errorf("tpm: anchor: %w", err)
	}
	if err := a.remove(ctx, c.OwnerAuth); err != nil {
		return errors.Join(a.wrap("remove", err), a.Close())
	}
	return a.Close()
}

func newAnchor(c Config) (*Anchor, error) {
	counter, data, err := c.indices()
	if err != nil {
		return nil, err
	}
	client, err := newClient(c.Device)
	if err != nil {
		return nil, err
	}
	return &Anchor{client: client, logID: c.LogID, auth: slices.Clone(c.Auth), counter: counter, data: data}, nil
}

// Name is "tpm:" and the handle of the counter.
func (a *Anchor) Name() string { return fmt.Sprintf("tpm:%08x", uint32(a.counter.handle)) }

// wrap names the anchor and what failed.
func (a *Anchor) wrap(what string, err error) error {
	return fmt.Errorf("%s: %s: %w", a.Name(), what, err)
}

// Read returns the latest state, or ErrAbsent if there is none. Every other
// error means that nothing is known, and none of them that the anchor is new.
func (a *Anchor) Read(ctx context.Context) (State, error) {
	r, err := a.read(ctx)
	if err == nil && r.kind == kindFresh {
		err = ErrAbsent
	}
	if err != nil {
		return State{}, a.wrap("read", err)
	}
	return r.state(), nil
}

// Write makes s the latest state. It returns nil once the TPM has it in its NV
// memory. After an error it is not known whether s was written; Read tells. A
// state that goes back is refused with ErrBackward, and nothing is written over
// an anchor that Read refuses.
func (a *Anchor) Write(ctx context.Context, s State) error {
	err := a.client.do(ctx, func(l *link) error {
		session, err := l.session(tpm2.Auth(a.auth))
		if err != nil {
			return err
		}
		now, counter, err := a.snapshot(l, session)
		if err != nil {
			return err
		}
		if s.Size < now.size || s.Size == now.size && now.kind != kindFresh && s.Root != now.root {
			return fmt.Errorf("%w: size %d, anchored %d", ErrBackward, s.Size, now.size)
		}
		next := newRecord(s, counter+1)
		if err := l.write(a.data, session, next.encode(a.logID)); err != nil {
			return err
		}
		return l.increment(a.counter, session)
	})
	if err != nil {
		return a.wrap("write", err)
	}
	return nil
}

// Close waits for the call that is running and forgets the auth value. Later
// calls fail with ErrClosed, and so does a second Close.
func (a *Anchor) Close() error {
	if err := a.client.close(func() { clear(a.auth) }); err != nil {
		return a.wrap("close", err)
	}
	return nil
}

func (a *Anchor) read(ctx context.Context) (r record, err error) {
	err = a.client.do(ctx, func(l *link) error {
		session, err := l.session(tpm2.Auth(a.auth))
		if err != nil {
			return err
		}
		r, _, err = a.snapshot(l, session)
		return err
	})
	return r, err
}

// snapshot reads both indices as they stood at one moment, and judges them.
func (a *Anchor) snapshot(l *link, session tpm2.Session) (record, uint64, error) {
	// Another process may write in between. While the counter stands still,
	// data holds one of the two records that may be beside it.
	for range snapshotTries {
		before, err := l.count(a.counter, session)
		if err != nil {
			return record{}, 0, err
		}
		raw, err := l.read(a.data, session)
		if err != nil {
			return record{}, 0, err
		}
		after, err := l.count(a.counter, session)
		if err != nil {
			return record{}, 0, err
		}
		if before != after {
			continue
		}
		r, err := decode(raw, a.logID)
		if err != nil {
			return record{}, 0, fmt.Errorf("%w: %s: %w", ErrTampered, a.data, err)
		}
		switch {
		case r.generation == after || r.generation == after+1:
			return r, after, nil
		case r.generation < after:
			return record{}, 0, fmt.Errorf("%w: rolled back: record %d, counter %d", ErrTampered, r.generation, after)
		default:
			return record{}, 0, fmt.Errorf("%w: record %d is ahead of counter %d", ErrTampered, r.generation, after)
		}
	}
	return record{}, 0, errors.New("another process writes to the anchor all the time")
}

// snapshotTries is more than a writer that writes once a second can spoil.
const snapshotTries = 8

// define makes both indices and writes the first record. The record is what
// makes ErrAbsent an authenticated answer: an index that is merely unwritten
// could be anybody's.
func (a *Anchor) define(l *link, ownerAuth []byte) error {
	salt, err := l.saltKey()
	if err != nil {
		return err
	}
	// Encrypted, because the definition carries the auth value itself.
	owner, err := l.session(salt, tpm2.Auth(ownerAuth), tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	for _, ix := range []index{a.counter, a.data} {
		if err := l.define(ix, owner, a.auth); err != nil {
			return err
		}
	}
	l.flush() // the TPM has room for few sessions and keys
	session, err := l.session(tpm2.Auth(a.auth))
	if err != nil {
		return err
	}
	if err := l.increment(a.counter.unwritten(), session); err != nil {
		return err
	}
	n, err := l.count(a.counter, session)
	if err != nil {
		return err
	}
	first := record{kind: kindFresh, generation: n}
	return l.write(a.data.unwritten(), session, first.encode(a.logID))
}

func (a *Anchor) remove(ctx context.Context, ownerAuth []byte) error {
	return a.client.do(ctx, func(l *link) error {
		session, err := l.session(tpm2.Auth(a.auth))
		if err != nil {
			return err
		}
		var found []index
		for _, ix := range []index{a.data, a.counter} {
			ix, err := l.owned(ix, session)
			if errors.Is(err, ErrMissing) {
				continue
			}
			if err != nil {
				return err
			}
			found = append(found, ix)
		}
		if len(found) == 0 {
			return ErrMissing
		}
		salt, err := l.saltKey()
		if err != nil {
			return err
		}
		owner, err := l.session(salt, tpm2.Auth(ownerAuth))
		if err != nil {
			return err
		}
		for _, ix := range found {
			if err := l.undefine(ix, owner); err != nil {
				return err
			}
		}
		return nil
	})
}
