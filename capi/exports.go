package main

// #include <stdlib.h>
// #include "ronkms.h"
import "C"

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"unsafe"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Limits of inputs that the engine has no limit for.
const (
	maxVerb       = 32
	maxPassphrase = 4096
	maxAddress    = 512 // an address that could be written

	// maxSignature is what the header promises to suffice for every bundle.
	maxSignature = C.RONKMS_MAX_SIGNATURE
)

func tooLong(reason api.Reason, message string) func() error {
	return func() error { return api.NewError(reason, message) }
}

//export rkgo_open
func rkgo_open(configJSON *C.char, configLen C.size_t, options *C.ronkms_open_options, out *C.ronkms_kms, err *C.ronkms_error) C.ronkms_status {
	return enter("open", err, func(c *call) error {
		text, inErr := input(unsafe.Pointer(configJSON), uintptr(configLen), C.RONKMS_MAX_CONFIG,
			tooLong(api.ReasonConfig, "the configuration is too long"))
		opts, optErr := readOptions(options)
		if err := first(clearHandle(unsafe.Pointer(out)), inErr, optErr); err != nil {
			return err
		}
		passphrase, err := input(unsafe.Pointer(opts.passphrase), uintptr(opts.passphrase_len), maxPassphrase,
			tooLong(api.ReasonPassphrase, "the passphrase is too long"))
		if err != nil {
			return err
		}
		defer secret.Wipe(passphrase)
		cfg, err := config.FromJSON(text)
		if err != nil {
			// The caller wrote it and there is nothing secret in it: the text
			// says what to correct.
			return api.WrapError(api.ReasonConfig, oneLine(err.Error()), err)
		}
		log, err := newLogSink(int(opts.log_fd))
		if err != nil {
			return err
		}
		c.inst, c.end = &instance{log: log}, log.close
		inst, err := openInstance(cfg, passphrase, log)
		if err != nil {
			return err
		}
		c.inst, c.end = inst, nil
		id := handles.addKMS(inst)
		return touch(func() { out.id = C.uint64_t(id) })
	})
}

func openInstance(cfg *config.Config, passphrase []byte, log *logSink) (inst *instance, err error) {
	inst = &instance{log: log}
	o := core.Options{Logger: log.Logger}
	if len(passphrase) > 0 {
		o.Passphrase = func() ([]byte, error) { return append([]byte(nil), passphrase...), nil }
	}
	if inst.kms, err = core.Open(context.Background(), cfg, o); err != nil {
		return nil, err
	}
	if inst.http, err = listen(inst.kms, log.Logger); err != nil {
		inst.kms.Close() // the listener's error is what the caller needs to know
		return nil, api.WrapError(api.ReasonConfig, "the HTTP control plane cannot listen on the bind address", err)
	}
	return inst, nil
}

// oneLine keeps a message printable.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// clearHandle sets a handle that is to be returned to 0.
func clearHandle(p unsafe.Pointer) error {
	if p == nil {
		return api.NewError(api.ReasonMalformed, "the place for the handle is NULL")
	}
	return touch(func() { *(*uint64)(p) = 0 })
}

//export rkgo_close
func rkgo_close(kms C.ronkms_kms, err *C.ronkms_error) C.ronkms_status {
	return enter("close", err, func(c *call) error {
		inst, open, err := handles.removeKMS(uint64(kms.id))
		if err != nil {
			return err
		}
		c.inst, c.end = inst, inst.log.close
		return inst.closeAll(open)
	})
}

//export rkgo_http_address
func rkgo_http_address(kms C.ronkms_kms, out *C.char, outCap C.size_t, outLen *C.size_t, err *C.ronkms_error) C.ronkms_status {
	return enter("http_address", err, func(c *call) error {
		o := output{unsafe.Pointer(out), uintptr(outCap), outLen}
		if err := o.clear(maxAddress); err != nil {
			return err
		}
		inst, err := c.kms(kms)
		if err != nil || inst.http == nil {
			return err
		}
		address := inst.http.address()
		if len(address) > int(outCap) {
			return o.needs(len(address))
		}
		return o.set([]byte(address)) // clear has put the NUL
	})
}

//export rkgo_session_open
func rkgo_session_open(kms C.ronkms_kms, token *C.char, tokenLen C.size_t, out *C.ronkms_session, err *C.ronkms_error) C.ronkms_status {
	return enter("session_open", err, func(c *call) error {
		text, inErr := input(unsafe.Pointer(token), uintptr(tokenLen), C.RONKMS_MAX_TOKEN,
			tooLong(api.ReasonTokenMalformed, "a valid capability token is required"))
		outErr := clearHandle(unsafe.Pointer(out))
		inst, err := c.kms(kms)
		if err := first(outErr, err, inErr); err != nil {
			return err
		}
		s, err := inst.kms.OpenSession(string(text))
		if err != nil {
			return err
		}
		id, err := handles.addSession(uint64(kms.id), session{s, inst})
		if err != nil {
			s.Close()
			return err
		}
		return touch(func() { out.id = C.uint64_t(id) })
	})
}

//export rkgo_session_close
func rkgo_session_close(h C.ronkms_session, err *C.ronkms_error) C.ronkms_status {
	return enter("session_close", err, func(c *call) error {
		s, err := handles.removeSession(uint64(h.id))
		if err != nil {
			return err
		}
		c.inst = s.inst
		s.Close()
		return nil
	})
}

// statement is what both sign and verify are about.
func statement(payload unsafe.Pointer, payloadLen uintptr, ctx unsafe.Pointer, ctxLen uintptr) (payloadB3, contextB64 string, err error) {
	if payloadLen != C.RONKMS_DIGEST_SIZE {
		return "", "", api.NewError(api.ReasonDigest, "payload_b3 must be 32 bytes: the BLAKE3 digest of the payload")
	}
	digest, err := input(payload, payloadLen, payloadLen, nil)
	if err != nil {
		return "", "", err
	}
	bound, err := input(ctx, ctxLen, C.RONKMS_MAX_CONTEXT, tooLong(api.ReasonTooLarge, "context is longer than 255 bytes"))
	if err != nil {
		return "", "", err
	}
	return hex.EncodeToString(digest), api.FormatBase64(bound), nil
}

//export rkgo_sign
func rkgo_sign(h C.ronkms_session, kid *C.char, kidLen C.size_t, payload *C.uint8_t, payloadLen C.size_t,
	ctx *C.uint8_t, ctxLen C.size_t, sig *C.uint8_t, sigCap C.size_t, sigLen *C.size_t, receipt *C.ronkms_receipt, err *C.ronkms_error,
) C.ronkms_status {
	return enter("sign", err, func(c *call) error {
		// Inputs first: outputs may overlap them.
		name, kidErr := input(unsafe.Pointer(kid), uintptr(kidLen), C.RONKMS_MAX_KID, tooLong(api.ReasonKID, "kid is longer than 640 bytes"))
		payloadB3, contextB64, stErr := statement(unsafe.Pointer(payload), uintptr(payloadLen), unsafe.Pointer(ctx), uintptr(ctxLen))
		o := output{unsafe.Pointer(sig), uintptr(sigCap), sigLen}
		outErr := o.clear(maxSignature)
		place, receiptErr := openReceipt(receipt)
		s, err := c.session(h)
		if err := first(outErr, receiptErr, err, kidErr, stErr); err != nil {
			return err
		}
		if n := maxBundle(string(name)); n > int(sigCap) {
			return o.needs(n)
		}
		if err := c.usable("sign"); err != nil {
			return err
		}
		resp, err := do[api.SignResponse](s, "sign", &api.SignRequest{KID: string(name), PayloadB3: payloadB3, ContextB64: contextB64})
		if err != nil {
			return err
		}
		bundle, err := appendBundle(resp.Sigs)
		if err != nil {
			return err
		}
		if len(bundle) > int(sigCap) {
			return fmt.Errorf("bundle of %d bytes is larger than was computed", len(bundle))
		}
		if err := o.set(bundle); err != nil {
			return err
		}
		return place.put(resp.Receipt)
	})
}

// do performs a verb without JSON.
func do[Response any](s session, verb string, req api.Request) (*Response, error) {
	v, ok := core.VerbNamed(verb)
	if !ok {
		return nil, fmt.Errorf("no verb %s", verb)
	}
	resp, err := s.inst.kms.Do(context.Background(), s.Session, v, req)
	if err != nil {
		return nil, err
	}
	r, ok := resp.(*Response)
	if !ok {
		return nil, fmt.Errorf("%s answered %T", verb, resp)
	}
	return r, nil
}

// maxBundle is a size that suffices for the bundle that signing with a kid
// makes, known from its text: that of the longest version if the kid has none,
// and with the companion track that a version of a classical key may have. It
// is 0 for a kid that cannot sign; the engine says why.
func maxBundle(kid string) int {
	k, err := api.ParseKID(kid)
	if err != nil {
		return 0
	}
	a, ok := alg.Lookup(k.Alg)
	if !ok || a.Name() != k.Alg || !a.Allows(alg.OpSign) {
		return 0
	}
	a = a.WithCompanion() // a version may have one
	if k.Version == 0 {
		k.Version = ^uint32(0)
	}
	size := 2
	for _, t := range a.Tracks() {
		size += 6 + len(k.String()) + len(t.Name()) + t.SignatureSize()
	}
	return size
}

func appendBundle(sigs []api.Signature) ([]byte, error) {
	entries := make([]alg.Signature, len(sigs))
	for i, s := range sigs {
		value, err := api.ParseBase64(s.SignatureB64)
		if err != nil {
			return nil, fmt.Errorf("bundle: %v", err) // the engine's own text: Internal, not Invalid
		}
		entries[i] = alg.Signature{KID: s.KID, Alg: s.Alg, Value: value}
	}
	return alg.AppendBundle(nil, entries)
}

// A receiptPlace is where the caller wants a receipt, if anywhere.
type receiptPlace struct {
	p *C.ronkms_receipt
	n uintptr
}

// openReceipt checks the place and empties it.
func openReceipt(p *C.ronkms_receipt) (receiptPlace, error) {
	if p == nil {
		return receiptPlace{}, nil
	}
	n, err := structPrefix(unsafe.Pointer(p), unsafe.Sizeof(*p))
	if err != nil {
		return receiptPlace{}, err
	}
	place := receiptPlace{p, n}
	return place, place.put(new(api.Receipt))
}

func (r receiptPlace) put(from *api.Receipt) error {
	if r.p == nil {
		return nil
	}
	if from == nil {
		return fmt.Errorf("sign answered without a receipt")
	}
	v := C.ronkms_receipt{
		log_index: C.uint64_t(from.LogIndex), key_seq: C.uint64_t(from.KeySeq), checkpoint_size: C.uint64_t(from.CheckpointSize),
	}
	putText(v.log[:], from.Log)
	return touch(func() { copyFields(unsafe.Pointer(r.p), unsafe.Pointer(&v), r.n, receiptEnds) })
}

//export rkgo_verify
func rkgo_verify(h C.ronkms_session, payload *C.uint8_t, payloadLen C.size_t, ctx *C.uint8_t, ctxLen C.size_t,
	bundle *C.uint8_t, bundleLen C.size_t, err *C.ronkms_error,
) C.ronkms_status {
	return enter("verify", err, func(c *call) error {
		s, err := c.session(h)
		if err != nil {
			return err
		}
		payloadB3, contextB64, err := statement(unsafe.Pointer(payload), uintptr(payloadLen), unsafe.Pointer(ctx), uintptr(ctxLen))
		if err != nil {
			return err
		}
		raw, err := input(unsafe.Pointer(bundle), uintptr(bundleLen), alg.MaxBundle, tooLong(api.ReasonBundle, "the bundle is too long"))
		if err != nil {
			return err
		}
		entries, err := alg.ParseBundle(raw)
		if err != nil {
			return s.inst.kms.Rejected(api.WrapError(api.ReasonBundle, "the bundle cannot be parsed", err))
		}
		req := &api.VerifyRequest{PayloadB3: payloadB3, ContextB64: contextB64, Sigs: make([]api.Signature, len(entries))}
		for i, e := range entries {
			req.Sigs[i] = api.Signature{KID: e.KID, Alg: e.Alg, SignatureB64: api.FormatBase64(e.Value)}
		}
		resp, err := do[api.VerifyResponse](s, "verify", req)
		if err != nil {
			return err
		}
		if resp.OK {
			return nil
		}
		return api.NewError(api.ReasonSignature, verdict(resp.Details.Reason))
	})
}

// verdict says in words why a bundle does not hold.
func verdict(reason string) string {
	switch reason {
	case "pq_policy":
		return "what is in the bundle holds, but policy demands more"
	case "unknown-key", "unknown-version":
		return "there is no such key or version here"
	}
	return "a signature does not hold"
}

//export rkgo_call
func rkgo_call(h C.ronkms_session, verb *C.char, verbLen C.size_t, reqJSON *C.char, reqLen C.size_t, out *C.ronkms_buf, err *C.ronkms_error) C.ronkms_status {
	return enter("call", err, func(c *call) error {
		name, nameErr := input(unsafe.Pointer(verb), uintptr(verbLen), maxVerb, tooLong(api.ReasonUnsupported, "there is no such verb"))
		body, bodyErr := input(unsafe.Pointer(reqJSON), uintptr(reqLen), C.RONKMS_MAX_REQUEST,
			tooLong(api.ReasonTooLarge, "the request is larger than KMS_MAX_PAYLOAD"))
		outErr := clearBuf(out)
		s, err := c.session(h)
		if err := first(outErr, err, nameErr, bodyErr); err != nil {
			return err
		}
		if err := c.usable(string(name)); err != nil {
			return err
		}
		answer, err := s.inst.kms.Call(context.Background(), s.Session, string(name), body)
		if err != nil {
			return err
		}
		return setBuf(out, answer)
	})
}

// clearBuf checks that out is a ronkms_buf and empties it.
func clearBuf(out *C.ronkms_buf) error {
	if out == nil {
		return api.NewError(api.ReasonMalformed, "the place for the output is NULL")
	}
	n, err := structPrefix(unsafe.Pointer(out), unsafe.Sizeof(*out))
	if err != nil {
		return err
	}
	if n != unsafe.Sizeof(*out) {
		return api.NewError(api.ReasonABI, "a ronkms_buf is shorter than it ever was")
	}
	return touch(func() { out.data, out.len = nil, 0 })
}

// setBuf hands bytes over in C memory, with a NUL after them.
func setBuf(out *C.ronkms_buf, b []byte) error {
	p := C.calloc(1, C.size_t(len(b)+1)) // unlike malloc, NULL when memory is short
	if p == nil {
		return fmt.Errorf("no memory for an output of %d bytes", len(b))
	}
	copy(view(p, uintptr(len(b))), b)
	err := touch(func() { out.data, out.len = (*C.uint8_t)(p), C.size_t(len(b)) })
	if err != nil {
		C.free(p)
	}
	return err
}
