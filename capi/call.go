package main

// #include "ronkms.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

// A call is one call from C, as far as it is known.
type call struct {
	op   string
	inst *instance // nil until a handle was looked up
	end  func()    // what remains to do after the result was logged; may be nil
}

// enter runs a call from C and returns its status: every exported function is
// one enter. Errors are filled in at err, and panics become RONKMS_ERR_INTERNAL.
func enter(op string, err *C.ronkms_error, f func(*call) error) C.ronkms_status {
	// Faults become panics, in this goroutine only: this one is the caller's.
	debug.SetPanicOnFault(true)
	known := uintptr(0) // how much of err both sides know
	if err != nil {
		var bad error
		if known, bad = structPrefix(unsafe.Pointer(err), unsafe.Sizeof(*err)); bad != nil {
			return C.ronkms_status(api.AsError(bad).Status)
		}
	}
	c := &call{op: op}
	defer func() {
		if c.end != nil {
			c.end()
		}
	}()
	e := api.AsError(c.run(f))
	if e == nil {
		return C.RONKMS_OK
	}
	id := "r-" + uuid.NewString()
	c.log(e, id)
	if known > 0 {
		detail := errorDetail(e, id)
		if bad := touch(func() { copyFields(unsafe.Pointer(err), unsafe.Pointer(&detail), known, errorEnds) }); bad != nil {
			return C.ronkms_status(e.Status) // err went away; the status still counts
		}
	}
	return C.ronkms_status(e.Status)
}

// run turns a panic into an error and poisons the store that the call was for.
func (c *call) run(f func(*call) error) (err error) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if c.inst != nil {
			c.inst.poisoned.Store(true)
		}
		err = api.WrapError(api.ReasonInternal, "internal error", fmt.Errorf("panic: %s\n%s", panicText(r), debug.Stack()))
	}()
	return f(c)
}

// panicText is the text of the runtime's own panics, which have no data in
// them, and the type of every other.
func panicText(r any) string {
	if e, ok := r.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("%T", r)
}

// log tells the operator about a failure that is not the caller's.
func (c *call) log(e *api.Error, id string) {
	if c.inst == nil {
		return
	}
	level := slog.LevelDebug
	switch e.Status {
	case api.StatusInternal:
		level = slog.LevelError
	case api.StatusUnavailable:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("op", c.op), slog.String("reason", string(e.Reason)), slog.String("request_id", id)}
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	c.inst.log.LogAttrs(context.Background(), level, "call failed", attrs...)
}

func errorDetail(e *api.Error, id string) (d C.ronkms_error) {
	d.code = C.ronkms_status(e.Status)
	if e.Retryable {
		d.flags |= C.RONKMS_ERROR_RETRYABLE
	}
	if ms := e.RetryAfter / time.Millisecond; ms > 0 {
		d.retry_after_ms = C.uint32_t(min(int64(ms), math.MaxUint32))
	}
	putText(d.reason[:], string(e.Reason))
	putText(d.request_id[:], id)
	putText(d.message[:], e.Message)
	return d
}

// kms looks up the store of a handle.
func (c *call) kms(h C.ronkms_kms) (*instance, error) {
	inst, err := handles.getKMS(uint64(h.id))
	c.inst = inst
	return inst, err
}

// session looks up a session.
func (c *call) session(h C.ronkms_session) (session, error) {
	s, err := handles.getSession(uint64(h.id))
	c.inst = s.inst
	return s, err
}

// usable refuses a verb that uses or changes a private key after a panic.
func (c *call) usable(verb string) error {
	if c.inst.poisoned.Load() && usesPrivateKey(verb) {
		return api.NewError(api.ReasonInternal, "an earlier call failed inside; only reads and verify go on until the store is opened again")
	}
	return nil
}

func usesPrivateKey(verb string) bool {
	v, ok := core.VerbNamed(verb)
	return ok && (v.Mutates || v.Private)
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// closeAll closes a store that is out of the table: sessions, listener,
// engine.
func (inst *instance) closeAll(open []session) error {
	for _, s := range open {
		s.Close()
	}
	var drain error
	if inst.http != nil {
		drain = inst.http.close()
	}
	err := errors.Join(drain, inst.kms.Close())
	if err != nil {
		return api.WrapError(api.ReasonStore, "the store is closed, but not everything was finished in order", err)
	}
	return nil
}
