package core_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// noon is when the tests below begin.
var noon = time.Date(2033, 3, 3, 12, 0, 0, 0, time.UTC)

// A window is open from not_before less the tolerance to not_after and the
// tolerance, both to the millisecond: for signing and for verifying, and
// whatever the tolerance. Beyond it the answer is TimeSkew, which is counted.
// D-20.
func TestValidityBounds(t *testing.T) {
	t.Parallel()
	for _, tolerance := range []int{0, 1, 1500, 60_000} {
		cfg := config.Default()
		cfg.Backend, cfg.ArenaSize, cfg.TimeSkewToleranceMS = config.BackendInmem, 1<<20, tolerance
		clock := NewClock(noon)
		k := Open(t, cfg, core.Options{Clock: clock.Now})
		s := Session(t, k, "acme")
		kid := Create(t, k, s, "hybrid").KID
		now, tol := noon.UnixMilli(), int64(tolerance)
		rejected := 0.0
		check := func(what string, err error, want bool) {
			t.Helper()
			if (err == nil) != want || !want && (!api.HasReason(err, api.ReasonTimeSkew) || api.AsError(err).HTTP != 400) {
				t.Errorf("tolerance %d, %s: %v, want ok %t", tolerance, what, err, want)
			}
			if !want {
				rejected++
			}
			if got := metric(t, k, "kms_reject_total", "reason=time_skew"); got != rejected {
				t.Errorf("tolerance %d, %s: counted %v, want %v", tolerance, what, got, rejected)
			}
		}
		for _, c := range []struct {
			what   string
			window api.Validity
			want   bool
		}{
			{"begins now", api.Validity{NotBeforeMS: now}, true},
			{"begins at the edge", api.Validity{NotBeforeMS: now + tol}, true},
			{"begins beyond it", api.Validity{NotBeforeMS: now + tol + 1}, false},
			{"ended now", api.Validity{NotAfterMS: now}, true},
			{"ended at the edge", api.Validity{NotAfterMS: now - tol}, true},
			{"ended beyond it", api.Validity{NotAfterMS: now - tol - 1}, false},
			{"is one moment", api.Validity{NotBeforeMS: now, NotAfterMS: now}, true},
			{"is open", api.Validity{}, true},
		} {
			r, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1), Validity: &c.window})
			check("sign, a window that "+c.what, err, c.want)
			if err == nil && (r.Sigs[0].Validity == nil || *r.Sigs[0].Validity != c.window || *r.Sigs[1].Validity != c.window) {
				t.Errorf("a window that %s is answered as %+v", c.what, r.Sigs[0].Validity)
			}
			items := &api.SignBatchRequest{KID: kid, Items: []api.SignItem{{PayloadB3: Digest(1), Validity: &c.window}, {PayloadB3: Digest(2)}}}
			batch := Must[api.SignBatchResponse](t, k, s, "sign_batch", items)
			if (batch.Results[0].Error == nil) != c.want || !c.want && batch.Results[0].Error.Code != api.CodeTimeSkew || batch.Results[1].Error != nil {
				t.Errorf("tolerance %d, batch, a window that %s: %+v", tolerance, c.what, batch.Results)
			}
			if !c.want {
				rejected++
			}
		}
		end := now + 120_000
		made := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1), Validity: &api.Validity{NotBeforeMS: now, NotAfterMS: end}}).Sigs
		for _, c := range []struct {
			what string
			at   int64
			want bool
		}{
			{"at its beginning", now, true},
			{"at the edge before it", now - tol, true},
			{"beyond the edge before it", now - tol - 1, false},
			{"at its end", end, true},
			{"at the edge after it", end + tol, true},
			{"beyond the edge after it", end + tol + 1, false},
			{"within it again", end - 1, true},
		} {
			clock.Set(time.UnixMilli(c.at))
			r, err := Do[api.VerifyResponse](k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: made})
			check("verify "+c.what, err, c.want)
			if err == nil && !r.OK {
				t.Errorf("verify %s: %+v", c.what, r)
			}
		}
		k.Close()
	}
}

// The window is signed: changed, widened or left out, nothing holds; and
// windows that are none are refused. D-20.
func TestValidityIsSigned(t *testing.T) {
	t.Parallel()
	k := Amnesia(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "hybrid").KID
	now := k.Now().UnixMilli()
	window := api.Validity{NotBeforeMS: now - 60_000, NotAfterMS: now + 60_000}
	made := Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1), Validity: &window}).Sigs
	plain := Sign(t, k, s, kid, Digest(1)).Sigs
	for what, c := range map[string]struct {
		sigs   []api.Signature
		window *api.Validity
		want   bool
	}{
		"as it was":     {made, &window, true},
		"left out":      {made, nil, false},
		"later end":     {made, &api.Validity{NotBeforeMS: window.NotBeforeMS, NotAfterMS: window.NotAfterMS + 1}, false},
		"no end":        {made, &api.Validity{NotBeforeMS: window.NotBeforeMS}, false},
		"earlier begin": {made, &api.Validity{NotBeforeMS: window.NotBeforeMS - 1, NotAfterMS: window.NotAfterMS}, false},
		"no begin":      {made, &api.Validity{NotAfterMS: window.NotAfterMS}, false},
		"none":          {plain, nil, true},
		"added":         {plain, &window, false},
		"an open one":   {plain, &api.Validity{}, true}, // says the same as none
	} {
		sigs := append([]api.Signature(nil), c.sigs...)
		for i := range sigs {
			sigs[i].Validity = c.window
		}
		r := Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: Digest(1), Sigs: sigs})
		if r.OK != c.want || !c.want && (r.Details.Checked[0].OK || r.Details.Checked[1].OK) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	for what, w := range map[string]api.Validity{
		"ends before it begins": {NotBeforeMS: now, NotAfterMS: now - 1},
		"negative":              {NotBeforeMS: -1},
		"past the year 9999":    {NotAfterMS: 253402300800000},
	} {
		if _, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1), Validity: &w}); Code(err) != api.CodeBadRequest {
			t.Errorf("a window that is %s: %v", what, err)
		}
	}
}

// A key with a window makes nothing outside of it, to the millisecond; what it
// made within holds and opens later. D-20.
func TestKeyValidity(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	clock := NewClock(noon)
	k := Open(t, cfg, core.Options{Clock: clock.Now})
	s := Session(t, k, "acme")
	const tol = 2000
	window := &api.Validity{NotBeforeMS: noon.UnixMilli() + 10_000, NotAfterMS: noon.UnixMilli() + 20_000}
	with := func(alg string) string {
		return CreateWith(t, k, s, api.CreateRequest{Alg: alg, Policy: &api.KeyPolicy{Validity: window}}).KID
	}
	signer, kem, aead, kdf := with("ed25519"), with("x25519+ml-kem-768"), with("aes-256-gcm"), with("hkdf-sha256")
	var sigs []api.Signature
	var child string
	envelopes := make(map[string]string)
	for _, c := range []struct {
		at   int64
		want bool
	}{
		{10_000 - tol - 1, false}, {10_000 - tol, true}, {15_000, true}, {20_000 + tol, true}, {20_000 + tol + 1, false},
	} {
		clock.Set(noon.Add(time.Duration(c.at) * time.Millisecond))
		check := func(what string, err error) {
			t.Helper()
			if (err == nil) != c.want || !c.want && !api.HasReason(err, api.ReasonTimeSkew) {
				t.Errorf("%s at %d: %v, want ok %t", what, c.at, err, c.want)
			}
		}
		r, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: signer, PayloadB3: Digest(1)})
		check("sign", err)
		if err == nil {
			sigs = r.Sigs
		}
		for _, kid := range []string{kem, aead} {
			w, err := Do[api.WrapResponse](k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32})
			check("wrap", err)
			if err == nil {
				envelopes[kid] = w.WrappedB64
			}
			if e, ok := envelopes[kid]; ok {
				_, err = Do[api.RewrapResponse](k, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: e})
				check("rewrap", err)
				Unwrap(t, k, s, kid, e)
			}
		}
		d, err := Do[api.DeriveResponse](k, s, "derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: kdf, Context: "ctx", Alg: "ed25519"})
		check("derive", err)
		if err == nil {
			child = d.KID
			if got := d.Key.Policy.Validity; got == nil || *got != *window {
				t.Errorf("a child has the window %+v, its parent %+v", got, window)
			}
		}
		if child != "" {
			_, err = Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: child, PayloadB3: Digest(1)})
			check("sign with a child", err)
		}
		if sigs != nil && !Verify(t, k, s, Digest(1), sigs).OK {
			t.Errorf("at %d a signature made before does not hold", c.at)
		}
	}
}

// A clock that is behind what is on record by more than the tolerance blocks
// whatever needs a record, and neither verify nor reads; also after reopening,
// and until it has caught up. R-091, D-20.
func TestClockBehindTheLog(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	cfg.TimeSkewToleranceMS = 1500
	clock := NewClock(noon)
	k := Open(t, cfg, core.Options{Clock: clock.Now})
	s := Session(t, k, "acme")
	kids := make(map[string]string)
	for _, verb := range core.Verbs() {
		kids[verb.Name] = Create(t, k, s, algOf(verb.Name)).KID
	}
	sigs := Sign(t, k, s, kids["sign"], Digest(1)).Sigs
	check := func(when string, want bool) {
		t.Helper()
		for _, verb := range core.Verbs() {
			if verb.Name == "export" || verb.Name == "destroy" && want {
				continue
			}
			req := request(verb.Name, kids[verb.Name])
			if want {
				switch r := req.(type) {
				case *api.UnwrapRequest:
					r.WrappedB64 = Wrap(t, k, s, r.KID, 32).WrappedB64
				case *api.RewrapRequest:
					r.WrappedB64 = Wrap(t, k, s, r.KID, 32).WrappedB64
				}
			}
			_, err := k.Do(t.Context(), s, verb, req)
			switch blocked := !want && (verb.Private || verb.Mutates); {
			case !blocked && err != nil:
				t.Errorf("%s, %s: %v", when, verb.Name, err)
			case blocked && (!api.HasReason(err, api.ReasonClock) || Code(err) != api.CodeTimeSkew || api.AsError(err).HTTP != 503):
				t.Errorf("%s, %s: %v, want TimeSkew 503", when, verb.Name, err)
			}
		}
		if !Verify(t, k, s, Digest(1), sigs).OK {
			t.Errorf("%s: a signature does not verify", when)
		}
		r := k.Ready()
		if r.Ready != want || !r.Verify || !want && r.Reason != string(api.ReasonClock) {
			t.Errorf("%s: %+v", when, r)
		}
	}
	check("on time", true)
	clock.Set(noon.Add(-1500 * time.Millisecond))
	check("behind by the tolerance", true)
	clock.Set(noon.Add(-1501 * time.Millisecond))
	check("behind by more", false)
	clock.Set(noon.Add(time.Second))
	check("on time again", true)
	clock.Set(noon.Add(-501 * time.Millisecond))
	check("behind the newest record", false)
	k.Close()
	for _, c := range []struct {
		behind time.Duration
		want   bool
	}{{1501 * time.Millisecond, false}, {time.Hour / 2, false}, {1500 * time.Millisecond, true}} {
		clock.Set(noon.Add(time.Second - c.behind))
		k = Open(t, cfg, core.Options{Clock: clock.Now})
		s = Session(t, k, "acme")
		check("reopened "+c.behind.String()+" behind", c.want)
		if !c.want {
			clock.Set(noon.Add(time.Second))
			check("caught up", true)
		}
		k.Close()
	}
}
