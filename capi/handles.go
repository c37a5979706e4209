package main

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

// Handles begin high and apart for each kind, so that neither a small number
// nor a handle of the other kind is ever valid.
const (
	firstKMS     = 0x4b4d << 48
	firstSession = 0x5345 << 48
)

// An instance is an open store.
type instance struct {
	kms  *core.KMS
	http *listener // nil without a bind address
	log  *logSink

	// poisoned is set by a panic: whatever it left half done, no private key
	// is used or changed after it.
	poisoned atomic.Bool

	sessions map[uint64]bool // guarded by handleTable.mu
}

// A session is an open capability.
type session struct {
	*core.Session
	inst *instance
}

// A handleTable says which handles are open. It keeps nothing alive: a running
// call holds what it has looked up, and the engine lets running calls finish.
type handleTable struct {
	mu       sync.RWMutex // guards all below
	last     uint64
	kms      map[uint64]*instance
	sessions map[uint64]session
}

func newHandleTable() *handleTable {
	return &handleTable{kms: make(map[uint64]*instance), sessions: make(map[uint64]session)}
}

var handles = newHandleTable()

func errHandle() error {
	return api.NewError(api.ReasonHandle, "the handle is not open")
}

func (t *handleTable) addKMS(inst *instance) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	id := firstKMS + t.last
	inst.sessions = make(map[uint64]bool)
	t.kms[id] = inst
	return id
}

func (t *handleTable) getKMS(id uint64) (*instance, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if inst, ok := t.kms[id]; ok {
		return inst, nil
	}
	return nil, errHandle()
}

// removeKMS takes a store and its sessions out of the table: of several
// threads that close one handle, one gets it.
func (t *handleTable) removeKMS(id uint64) (*instance, []session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	inst, ok := t.kms[id]
	if !ok {
		return nil, nil, errHandle()
	}
	delete(t.kms, id)
	var open []session
	for sid := range maps.Keys(inst.sessions) {
		open = append(open, t.sessions[sid])
		delete(t.sessions, sid)
	}
	inst.sessions = nil
	return inst, open, nil
}

// addSession fails if the store was closed meanwhile.
func (t *handleTable) addSession(kms uint64, s session) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kms[kms] != s.inst {
		return 0, errHandle()
	}
	t.last++
	id := firstSession + t.last
	t.sessions[id] = s
	s.inst.sessions[id] = true
	return id, nil
}

func (t *handleTable) getSession(id uint64) (session, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s, ok := t.sessions[id]; ok {
		return s, nil
	}
	return session{}, errHandle()
}

func (t *handleTable) removeSession(id uint64) (session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.sessions[id]
	if !ok {
		return session{}, errHandle()
	}
	delete(t.sessions, id)
	delete(s.inst.sessions, id)
	return s, nil
}
