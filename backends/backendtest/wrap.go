package backendtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
)

// tracks are all tracks of the allow-list, each once.
func tracks() (all []*alg.Track) {
	seen := make(map[*alg.Track]bool)
	for _, a := range alg.All() {
		for _, t := range a.Tracks() {
			if !seen[t] {
				seen[t] = true
				all = append(all, t)
			}
		}
	}
	return all
}

// uses try what can be done with a private key, and check the outcome with
// package alg, which knows nothing of the backend.
var uses = map[backends.Operation]func(backends.Backend, backends.Ref, backends.Material) error{
	backends.OpSign: check,
	backends.OpWrap: func(b backends.Backend, r backends.Ref, m backends.Material) error {
		_, err := b.Wrap(ctx, r, m.Sealed, []byte("aad"), []byte("data key"))
		return err
	},
	backends.OpUnwrap: func(b backends.Backend, r backends.Ref, m backends.Material) error {
		e, err := envelope(b, r, m, []byte("aad"), []byte("data key"))
		if err != nil {
			// Nothing can be made to open: whatever it is, it is asked for.
			e = alg.Envelope{KID: r.KID.String(), Alg: r.KID.Alg, Body: make([]byte, 64)}
		}
		return opens(b, r, m, []byte("aad"), e, []byte("data key"))
	},
	backends.OpDerive: func(b backends.Backend, r backends.Ref, m backends.Material) error {
		_, err := b.Derive(ctx, r, m.Sealed, "info", ref("ed25519", "ed25519"))
		return err
	},
}

// envelope seals a data key to a key, as the engine does: to its public part if
// it has one, and with the custodian otherwise.
func envelope(b backends.Backend, r backends.Ref, m backends.Material, aad, plaintext []byte) (e alg.Envelope, err error) {
	e = alg.Envelope{KID: r.KID.String(), Alg: r.KID.Alg}
	track, ok := alg.LookupTrack(r.Track)
	if !ok {
		return e, fmt.Errorf("no track %s", r.Track)
	}
	if track.Kind() != alg.KindKEM {
		e.Body, err = b.Wrap(ctx, r, m.Sealed, aad, plaintext)
		return e, err
	}
	public, err := track.ParsePublic(m.Public)
	if err != nil {
		return e, err
	}
	e.Enc, e.Body, err = public.SealTo([]byte(alg.WrapInfo), aad, plaintext)
	return e, err
}

// opens checks that an envelope opens to what was sealed.
func opens(b backends.Backend, r backends.Ref, m backends.Material, aad []byte, e alg.Envelope, want []byte) error {
	var got []byte
	if err := b.Unwrap(ctx, r, m.Sealed, aad, e, func(p []byte) { got = bytes.Clone(p) }); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("the envelope opens to something else")
	}
	return nil
}

// unwrappable lists every (algorithm, track) that the backend claims to unwrap
// with.
func unwrappable(b backends.Backend) (refs []backends.Ref) {
	for _, t := range tracks() {
		if has(b, t.Name(), backends.OpUnwrap) {
			refs = append(refs, ref(t.Name(), t.Name()))
		}
	}
	return refs
}

// wrap: what was wrapped opens, from the cache and from the sealed form, for
// every size; no two envelopes are the same..
func (s suite) wrap(t *testing.T) {
	b := s.fresh(t)
	for _, r := range unwrappable(b) {
		m := generate(t, b, r)
		for _, size := range []int{1, 16, 32, alg.MaxDataKey} {
			plaintext := make([]byte, size)
			rand.Read(plaintext)
			first, err := envelope(b, r, m, []byte("aad"), plaintext)
			if err != nil {
				t.Fatalf("%s: %v", r.Track, err)
			}
			b.Forget(r)
			second, err := envelope(b, r, m, []byte("aad"), plaintext)
			if err != nil || bytes.Equal(first.Body, second.Body) {
				t.Fatalf("%s: two envelopes are the same, or %v", r.Track, err)
			}
			for range 2 {
				for _, e := range []alg.Envelope{first, second} {
					if err := opens(b, r, m, []byte("aad"), e, plaintext); err != nil {
						t.Errorf("%s, %d bytes: %v", r.Track, size, err)
					}
				}
				b.Forget(r)
			}
		}
		if _, err := envelope(b, r, m, nil, nil); err == nil {
			t.Errorf("%s: nothing was wrapped", r.Track)
		}
		if _, err := envelope(b, r, m, nil, make([]byte, alg.MaxDataKey+1)); err == nil {
			t.Errorf("%s: more than a data key was wrapped", r.Track)
		}
	}
}

// wrapBinding: whatever is wrong with an envelope is ErrUnwrap, and whatever is
// wrong with the sealed key is ErrTampered; nothing is lent. R-235.
func (s suite) wrapBinding(t *testing.T) {
	b := s.fresh(t)
	for _, r := range unwrappable(b) {
		m := generate(t, b, r)
		e, err := envelope(b, r, m, []byte("aad"), []byte("data key"))
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what string, r backends.Ref, sealed, aad []byte, e alg.Envelope, want error) {
			t.Helper()
			lent := false
			if err := b.Unwrap(ctx, r, sealed, aad, e, func([]byte) { lent = true }); !errors.Is(err, want) || lent {
				t.Errorf("%s, %s: %v (lent %t), want %v", r.Track, what, err, lent, want)
			}
		}
		changed := func(field func(*alg.Envelope) *[]byte, i int) alg.Envelope {
			x := e
			p := field(&x)
			*p = bytes.Clone(*p)
			(*p)[i] ^= 1 << (i % 8)
			return x
		}
		body := func(e *alg.Envelope) *[]byte { return &e.Body }
		enc := func(e *alg.Envelope) *[]byte { return &e.Enc }
		for i := range e.Body {
			refused(fmt.Sprintf("byte %d of the body flipped", i), r, m.Sealed, []byte("aad"), changed(body, i), backends.ErrUnwrap)
		}
		for i := 0; i < len(e.Enc); i += 1 + len(e.Enc)/16 {
			refused(fmt.Sprintf("byte %d of enc flipped", i), r, m.Sealed, []byte("aad"), changed(enc, i), backends.ErrUnwrap)
		}
		for _, n := range []int{0, 1, len(e.Body) - 1} {
			refused("body cut", r, m.Sealed, []byte("aad"), alg.Envelope{KID: e.KID, Alg: e.Alg, Enc: e.Enc, Body: e.Body[:n]}, backends.ErrUnwrap)
		}
		refused("other aad", r, m.Sealed, []byte("aae"), e, backends.ErrUnwrap)
		refused("no aad", r, m.Sealed, nil, e, backends.ErrUnwrap)
		other := generate(t, b, r)
		refused("another key", r, other.Sealed, []byte("aad"), e, backends.ErrUnwrap)
		refused("no sealed key", r, nil, []byte("aad"), e, backends.ErrTampered)
		moved := r
		moved.KID.Version++
		refused("sealed key of another version", moved, m.Sealed, []byte("aad"), e, backends.ErrTampered)
		if err := opens(b, r, m, []byte("aad"), e, []byte("data key")); err != nil {
			t.Errorf("%s: the refusals harmed the key: %v", r.Track, err)
		}
	}
}

// derive: one parent and info give one child, whatever it is called, and any
// other parent, info or track another; children work..
func (s suite) derive(t *testing.T) {
	b := s.fresh(t)
	for _, tr := range tracks() {
		if !has(b, tr.Name(), backends.OpDerive) {
			continue
		}
		r := ref(tr.Name(), tr.Name())
		m, second := generate(t, b, r), generate(t, b, r)
		derived := func(b backends.Backend, m backends.Material, info string, child backends.Ref) backends.Material {
			t.Helper()
			out, err := b.Derive(ctx, r, m.Sealed, info, child)
			if err != nil {
				t.Fatalf("derive %s: %v", child.Track, err)
			}
			return out
		}
		for _, ct := range tracks() {
			if !has(b, ct.Name(), backends.OpGenerate) {
				continue
			}
			child := ref(ct.Name(), ct.Name())
			made := derived(b, m, "info", child)
			b.Forget(r)
			again := derived(b, m, "info", child)
			if !bytes.Equal(made.Public, again.Public) {
				t.Errorf("%s: the child is another one the second time", ct.Name())
			}
			if len(made.Public) > 0 {
				for what, x := range map[string]backends.Material{
					"info": derived(b, m, "infp", child), "parent": derived(b, second, "info", child),
				} {
					if bytes.Equal(x.Public, made.Public) {
						t.Errorf("%s: another %s gives the same child", ct.Name(), what)
					}
				}
			}
			for op, try := range uses {
				if has(b, ct.Name(), op) {
					for _, m := range []backends.Material{made, again} {
						if err := try(b, child, m); err != nil {
							t.Errorf("%s of a derived %s: %v", op, ct.Name(), err)
						}
					}
				}
			}
			// Two children of one seed without a public part: what one seals
			// the other opens.
			if has(b, ct.Name(), backends.OpWrap) {
				e, err := envelope(b, child, made, nil, []byte("data key"))
				if err = errors.Join(err, opens(b, child, again, nil, e, []byte("data key"))); err != nil {
					t.Errorf("%s: the child is another one the second time: %v", ct.Name(), err)
				}
				if err := opens(b, child, derived(b, m, "infp", child), nil, e, []byte("data key")); !errors.Is(err, backends.ErrUnwrap) {
					t.Errorf("%s: another info gives the same child: %v", ct.Name(), err)
				}
			}
		}
		if _, err := b.Derive(ctx, r, m.Sealed, "", ref("ed25519", "ed25519")); err == nil {
			t.Error("derived without info")
		}
		if _, err := b.Derive(ctx, r, m.Sealed, "info", ref("ed25519", "aes-256-gcm")); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("a child with a track that is not its own: %v, want ErrUnsupported", err)
		}
		moved := r
		moved.KID.Tenant = "evil"
		if _, err := b.Derive(ctx, moved, m.Sealed, "info", ref("ed25519", "ed25519")); !errors.Is(err, backends.ErrTampered) {
			t.Errorf("the parent of another tenant: %v, want ErrTampered", err)
		}
		if s.reopen != nil {
			child := ref("ed25519", "ed25519")
			before := derived(b, m, "info", child)
			b = s.reopen(t, b)
			if after := derived(b, m, "info", child); !bytes.Equal(before.Public, after.Public) {
				t.Error("the child is another one after reopening")
			}
		}
	}
}
