package main

// #include "ronkms.h"
import "C"

import (
	"math"
	"runtime"
	"unsafe"

	"github.com/rustyonions/ron-kms/core/api"
)

// maxStructSize bounds struct_size, so that a struct that was never
// initialized does not have this library look through the caller's memory.
const maxStructSize = 4096

// touch runs f, which reads or writes the caller's memory and nothing else,
// and turns a fault into an error. It needs debug.SetPanicOnFault.
func touch(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error: // a fault, or a length that no memory can have
			err = api.NewError(api.ReasonMalformed, "an argument does not point to usable memory")
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// view is a slice over the caller's memory; use it inside touch only.
func view(p unsafe.Pointer, n uintptr) []byte {
	return unsafe.Slice((*byte)(p), n)
}

// checkPointer holds NULL to the rule: allowed if and only if nothing is
// there.
func checkPointer(p unsafe.Pointer, n uintptr) error {
	if p == nil && n != 0 {
		return api.NewError(api.ReasonMalformed, "an argument is NULL with a length that is not 0")
	}
	if n > math.MaxInt {
		return api.NewError(api.ReasonMalformed, "an argument's length is not possible")
	}
	return nil
}

// input copies an argument: another thread may change the caller's memory
// while it is looked at. More than limit bytes are not copied; tooLong says
// why.
func input(p unsafe.Pointer, n, limit uintptr, tooLong func() error) (b []byte, err error) {
	if err := checkPointer(p, n); err != nil {
		return nil, err
	}
	if n > limit {
		return nil, tooLong()
	}
	b = make([]byte, n)
	if err := touch(func() { copy(b, view(p, n)) }); err != nil {
		return nil, err
	}
	return b, nil
}

// An output is a buffer of the caller, its capacity and the place for its
// length.
type output struct {
	p   unsafe.Pointer
	cap uintptr
	len *C.size_t
}

// clear empties the output as far as anything could be written to it. So it is
// zero if the call fails, and a wild pointer is found before anything is done.
func (o output) clear(limit uintptr) error {
	if o.len == nil {
		return api.NewError(api.ReasonMalformed, "the place for an output's length is NULL")
	}
	if err := touch(func() { *o.len = 0 }); err != nil {
		return err
	}
	if err := checkPointer(o.p, o.cap); err != nil {
		return err
	}
	return touch(func() { clear(view(o.p, min(o.cap, limit))) })
}

// needs says how large the buffer must be.
func (o output) needs(n int) error {
	if err := touch(func() { *o.len = C.size_t(n) }); err != nil {
		return err
	}
	return api.NewError(api.ReasonBuffer, "the output buffer is too small")
}

// set writes the result, which the buffer must have room for.
func (o output) set(b []byte) error {
	return touch(func() {
		copy(view(o.p, o.cap), b)
		*o.len = C.size_t(len(b))
	})
}

// structPrefix applies the rule for struct_size to a struct at p of which this
// library knows size bytes. It returns how many bytes both sides know.
func structPrefix(p unsafe.Pointer, size uintptr) (n uintptr, err error) {
	fault := touch(func() {
		got := uintptr(*(*uint32)(p))
		switch {
		case got < unsafe.Sizeof(uint32(0)) || got > maxStructSize:
			err = api.NewError(api.ReasonABI, "struct_size is not that of a struct initialized with its INIT macro")
		case got > size:
			for _, b := range view(p, got)[size:] {
				if b != 0 {
					err = api.NewError(api.ReasonABI, "a struct has a field that this library does not know")
				}
			}
			n = size
		default:
			n = got
		}
	})
	if fault != nil {
		return 0, fault
	}
	return n, err
}

// copyFields copies a struct's fields except struct_size, as far as they are
// whole within n bytes. ends are the offsets at which fields end, ascending. It
// runs inside touch.
func copyFields(dst, src unsafe.Pointer, n uintptr, ends []uintptr) {
	const first = unsafe.Sizeof(uint32(0))
	whole := first
	for _, e := range ends {
		if e <= n {
			whole = e
		}
	}
	copy(view(dst, whole)[first:], view(src, whole)[first:])
}

var (
	errorEnds = func() []uintptr {
		var e C.ronkms_error
		return []uintptr{
			unsafe.Offsetof(e.flags), unsafe.Offsetof(e.retry_after_ms), unsafe.Offsetof(e.audit_index),
			unsafe.Offsetof(e.reason), unsafe.Offsetof(e.request_id), unsafe.Offsetof(e.message), unsafe.Sizeof(e),
		}
	}()
	optionsEnds = func() []uintptr {
		var o C.ronkms_open_options
		// The passphrase is read only together with its length.
		return []uintptr{unsafe.Offsetof(o.passphrase), unsafe.Sizeof(o)}
	}()
	receiptEnds = func() []uintptr {
		var r C.ronkms_receipt
		return []uintptr{
			unsafe.Offsetof(r.log_index), unsafe.Offsetof(r.key_seq), unsafe.Offsetof(r.checkpoint_size), unsafe.Offsetof(r.log), unsafe.Sizeof(r),
		}
	}()
)

// readOptions reads options over their defaults.
func readOptions(p *C.ronkms_open_options) (C.ronkms_open_options, error) {
	o := C.ronkms_open_options{log_fd: -1}
	if p == nil {
		return o, nil
	}
	n, err := structPrefix(unsafe.Pointer(p), unsafe.Sizeof(o))
	if err != nil {
		return o, err
	}
	return o, touch(func() { copyFields(unsafe.Pointer(&o), unsafe.Pointer(p), n, optionsEnds) })
}

// putText writes text and a NUL, cut to the field's size.
func putText(field []C.char, text string) {
	clear(field)
	for i := range min(len(text), len(field)-1) {
		field[i] = C.char(text[i])
	}
}
