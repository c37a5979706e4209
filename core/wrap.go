package core

import (
	"context"
	"errors"

	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// errUnwrap is the one answer to every envelope that does not open: what is
// wrong with it is not the caller's to learn.
func errUnwrap() error {
	return api.NewError(api.ReasonUnwrap, "the envelope does not open with this key")
}

func (k *KMS) wrap(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.WrapRequest)
	cur, err := k.usable(d.target.Key, alg.OpWrap)
	if err != nil {
		return outcome{}, err
	}
	aad, err := api.ParseAAD(req.AADB64)
	if err != nil {
		return outcome{}, err
	}
	resp := new(api.WrapResponse)
	lend, done, err := k.dataKey(req)
	if err != nil {
		return outcome{}, err
	}
	defer done()
	var kid api.KID
	var envelope []byte
	var class string
	lendErr := lend(func(plaintext []byte) {
		if req.Size > 0 && !req.OmitPlaintext {
			resp.PlaintextKeyB64 = api.FormatBase64(plaintext)
		}
		kid, envelope, class, err = k.seal(ctx, cur, d.target.Key, d.target.Tenant, aad, plaintext)
	})
	if err = errors.Join(lendErr, err); err != nil {
		return outcome{}, err
	}
	resp.KID, resp.Alg, resp.WrappedB64 = kid.String(), cur.alg.Name(), api.FormatBase64(envelope)
	return outcome{
		response: resp, entries: []entry{{kid: kid, class: class, inputHash: blake3.Sum256(envelope)}},
		receipts: func(r []*api.Receipt) { resp.Receipt = r[0] },
	}, nil
}

// dataKey gives the data key to wrap: a fresh one from the arena, or the
// caller's. done wipes it.
func (k *KMS) dataKey(req *api.WrapRequest) (lend func(func([]byte)) error, done func(), err error) {
	if req.Size > 0 {
		fresh, err := k.vault.Scratch(req.Size)
		if err != nil {
			return nil, nil, custodyError(err)
		}
		var fillErr error
		if err := errors.Join(fresh.Use(func(p []byte) { fillErr = fresh.Fill(p) }), fillErr); err != nil {
			fresh.Destroy()
			return nil, nil, api.WrapError(api.ReasonStore, "the random generator failed", err)
		}
		return fresh.Use, fresh.Destroy, nil
	}
	given, err := api.ParseBase64(req.PlaintextKeyB64)
	if err != nil {
		return nil, nil, err
	}
	lend = func(fn func([]byte)) error { fn(given); return nil }
	return lend, func() { secret.Wipe(given) }, nil
}

// seal makes an envelope with the head version of a key.
func (k *KMS) seal(ctx context.Context, cur *key, asked api.KID, tenant string, aad, plaintext []byte) (kid api.KID, envelope []byte, class string, err error) {
	defer k.forgetErased(cur)
	kid, v, err := cur.headFor(asked)
	if err != nil {
		return kid, nil, "", err
	}
	if err := k.within(cur.record.Policy.Validity); err != nil {
		return kid, nil, "", err
	}
	t := &v.tracks[0]
	bound, err := alg.EnvelopeAAD(tenant, kid.String(), cur.alg.Name(), aad)
	if err != nil {
		return kid, nil, "", api.WrapError(api.ReasonMalformed, "the envelope cannot be made", err)
	}
	e := alg.Envelope{KID: kid.String(), Alg: cur.alg.Name()}
	if t.Kind() == alg.KindKEM {
		e.Enc, e.Body, err = t.public.SealTo([]byte(alg.WrapInfo), bound, plaintext)
	} else {
		e.Body, err = k.vault.Wrap(ctx, t.ref, t.sealed, bound, plaintext)
	}
	if err != nil {
		return kid, nil, "", custodyError(err)
	}
	envelope, err = alg.AppendEnvelope(nil, e)
	return kid, envelope, t.class, err
}

func (k *KMS) unwrap(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.UnwrapRequest)
	resp := new(api.UnwrapResponse)
	opened, err := k.openEnvelope(ctx, d, req.WrappedB64, req.AADB64, func(plaintext []byte) {
		resp.PlaintextKeyB64 = api.FormatBase64(plaintext)
	})
	if err != nil {
		return outcome{}, err
	}
	resp.KID, resp.Alg = opened.kid.String(), opened.key.alg.Name()
	return outcome{
		response: resp, entries: []entry{{kid: opened.kid, class: opened.class, inputHash: opened.hash}},
		receipts: func(r []*api.Receipt) { resp.Receipt = r[0] },
	}, nil
}

func (k *KMS) rewrap(ctx context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.RewrapRequest)
	// The data key passes through the arena and nowhere else.
	slot, err := k.vault.Scratch(api.MaxDataKey)
	if err != nil {
		return outcome{}, custodyError(err)
	}
	defer slot.Destroy()
	n := 0
	var copyErr error
	opened, err := k.openEnvelope(ctx, d, req.WrappedB64, req.AADB64, func(plaintext []byte) {
		n = len(plaintext)
		copyErr = slot.Use(func(p []byte) { copy(p, plaintext) })
	})
	if err = errors.Join(err, copyErr); err != nil {
		return outcome{}, err
	}
	aad, err := api.ParseAAD(req.AADB64)
	if err != nil {
		return outcome{}, err
	}
	resp := &api.RewrapResponse{Previous: opened.kid.String(), Alg: opened.key.alg.Name()}
	var kid api.KID
	var envelope []byte
	var class string
	useErr := slot.Use(func(p []byte) {
		kid, envelope, class, err = k.seal(ctx, opened.key, d.target.Key.Base(), d.target.Tenant, aad, p[:n])
	})
	if err = errors.Join(useErr, err); err != nil {
		return outcome{}, err
	}
	resp.KID, resp.WrappedB64 = kid.String(), api.FormatBase64(envelope)
	return outcome{
		// Two versions were used: the one that opened, and the one that sealed.
		response: resp, entries: []entry{
			{kid: opened.kid, result: resultUsed, class: opened.class, inputHash: opened.hash},
			{kid: kid, class: class, inputHash: blake3.Sum256(envelope)},
		},
		receipts: func(r []*api.Receipt) { resp.Receipt = r[1] },
	}, nil
}

// opened is what opening an envelope tells besides the data key.
type opened struct {
	key   *key
	kid   api.KID // the version that opened it
	class string
	hash  [32]byte
}

// openEnvelope opens an envelope and lends the data key. Whatever is wrong with the
// envelope, its key version or its associated data, the error is errUnwrap.
func (k *KMS) openEnvelope(ctx context.Context, d *decided, wrapped, aadB64 string, use func(plaintext []byte)) (*opened, error) {
	cur, err := k.usable(d.target.Key, alg.OpUnwrap)
	if err != nil {
		return nil, err
	}
	if cur.record.State == api.StateDestroyed {
		return nil, api.NewError(api.ReasonDestroyed, "the key is destroyed")
	}
	raw, err := api.ParseBase64(wrapped)
	if err != nil {
		return nil, err
	}
	aad, err := api.ParseAAD(aadB64)
	if err != nil {
		return nil, err
	}
	e, err := alg.ParseEnvelope(raw)
	if err != nil {
		return nil, errUnwrap()
	}
	kid, err := api.ParseKID(e.KID)
	if err != nil || kid.Base() != cur.kid || e.Alg != cur.alg.Name() {
		return nil, errUnwrap()
	}
	if n := d.target.Key.Version; n != 0 && n != kid.Version {
		return nil, errUnwrap()
	}
	v := cur.versions[kid.Version]
	if v == nil || v.state == api.StateDestroyed {
		return nil, errUnwrap()
	}
	bound, err := alg.EnvelopeAAD(d.target.Tenant, e.KID, e.Alg, aad)
	if err != nil {
		return nil, errUnwrap()
	}
	t := &v.tracks[0]
	defer k.forgetErased(cur)
	err = k.vault.Unwrap(ctx, t.ref, t.sealed, bound, e, use)
	if errors.Is(err, backends.ErrUnwrap) {
		return nil, errUnwrap()
	}
	if err != nil {
		return nil, custodyError(err)
	}
	return &opened{key: cur, kid: kid, class: t.class, hash: blake3.Sum256(raw)}, nil
}
