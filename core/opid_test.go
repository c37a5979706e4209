package core_test

import (
	"reflect"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// 64 callers with one op_id make one key, one version, one destruction; all
// get the same answer, and so does a caller after a restart..
func TestConcurrentDuplicates(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")

	create := &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "hybrid"}
	created := duplicates[api.CreateResponse](t, 64, func() (*api.CreateResponse, error) {
		return Do[api.CreateResponse](k, s, "create", create)
	})
	if keys := Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme"}).Keys; len(keys) != 1 {
		t.Fatalf("%d keys", len(keys))
	}
	rotate := &api.RotateRequest{OpID: uuid.NewString(), KID: created.Key.KID}
	rotated := duplicates[api.RotateResponse](t, 64, func() (*api.RotateResponse, error) {
		return Do[api.RotateResponse](k, s, "rotate", rotate)
	})
	if head := Get(t, k, s, created.KID).Key.Head; head != 2 || len(Get(t, k, s, created.KID[:len(created.KID)-3]).Key.Versions) != 2 {
		t.Fatalf("head %d", head)
	}
	destroy := &api.DestroyRequest{OpID: uuid.NewString(), KID: created.KID[:len(created.KID)-3]}
	destroyed := duplicates[api.DestroyResponse](t, 64, func() (*api.DestroyResponse, error) {
		return Do[api.DestroyResponse](k, s, "destroy", destroy)
	})

	// The key has moved on; the answers have not.
	for range 2 {
		c := Must[api.CreateResponse](t, k, s, "create", create)
		r := Must[api.RotateResponse](t, k, s, "rotate", rotate)
		d := Must[api.DestroyResponse](t, k, s, "destroy", destroy)
		if !c.Replayed || !r.Replayed || !d.Replayed {
			t.Errorf("a replay does not say so: %t %t %t", c.Replayed, r.Replayed, d.Replayed)
		}
		same(t, created, c)
		same(t, rotated, r)
		same(t, destroyed, d)
		k = reopen(t, k)
		s = Session(t, k, "acme")
	}
}

// duplicates calls fn n times at once and returns the one answer.
func duplicates[R any](t *testing.T, n int, fn func() (*R, error)) *R {
	t.Helper()
	answers := make([]*R, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var err error
			if answers[i], err = fn(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	first := 0
	for _, a := range answers {
		if !reflect.ValueOf(a).Elem().FieldByName("Replayed").Bool() {
			first++
		}
		same(t, answers[0], a)
	}
	if first != 1 {
		t.Fatalf("%d of %d calls did the work", first, n)
	}
	return answers[0]
}

// same compares answers apart from the receipt, which is of each call's own
// record.
func same[R any](t *testing.T, a, b *R) {
	t.Helper()
	strip := func(r *R) any {
		c := *r
		v := reflect.ValueOf(&c).Elem()
		for _, name := range []string{"Receipt", "Replayed"} {
			v.FieldByName(name).SetZero()
		}
		return c
	}
	if x, y := strip(a), strip(b); !reflect.DeepEqual(x, y) {
		t.Errorf("answers differ:\n%+v\n%+v", x, y)
	}
}

// One op_id with another request is a conflict; with another verb or tenant it
// is another operation; after a refusal it is unused. R-130, D-15.
func TestOpIDScope(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	id := uuid.NewString()
	create := api.CreateRequest{OpID: id, Tenant: "acme", Purpose: "test", Alg: "ed25519"}
	kid := Must[api.CreateResponse](t, k, s, "create", &create).KID
	base := kid[:len(kid)-3]
	for range 2 {
		for name, change := range map[string]func(*api.CreateRequest){
			"purpose": func(r *api.CreateRequest) { r.Purpose = "other" },
			"alg":     func(r *api.CreateRequest) { r.Alg = "ml-dsa-65" },
			"policy":  func(r *api.CreateRequest) { r.Policy = &api.KeyPolicy{VerifyMode: "or"} },
		} {
			r := create
			change(&r)
			_, err := Do[api.CreateResponse](k, s, "create", &r)
			if !api.HasReason(err, api.ReasonOpIDReused) || Code(err) != api.CodeConflict {
				t.Errorf("with another %s: %v, want Conflict", name, err)
			}
		}
		k = reopen(t, k)
		s = Session(t, k, "acme")
	}
	if n := len(Must[api.ListResponse](t, k, s, "list", &api.ListRequest{Tenant: "acme"}).Keys); n != 1 {
		t.Fatalf("conflicts made keys: %d", n)
	}
	// The same id for each verb.
	if r := Must[api.RotateResponse](t, k, s, "rotate", &api.RotateRequest{OpID: id, KID: kid}); r.Key.Head != 2 || r.Replayed {
		t.Errorf("rotate: %+v", r)
	}
	if d := Must[api.DestroyResponse](t, k, s, "destroy", &api.DestroyRequest{OpID: id, KID: base}); d.Key.State != api.StateDestroyed {
		t.Errorf("destroy: %+v", d)
	}
	// A replay of the rotate answers, though the key is destroyed meanwhile.
	if r := Must[api.RotateResponse](t, k, s, "rotate", &api.RotateRequest{OpID: id, KID: kid}); !r.Replayed || r.KID != base+"#v2" {
		t.Errorf("replayed rotate: %+v", r)
	}
	// What was refused has not used its id up.
	fresh := uuid.NewString()
	if _, err := Do[api.RotateResponse](k, s, "rotate", &api.RotateRequest{OpID: fresh, KID: base}); Code(err) != api.CodeKeyDestroyed {
		t.Fatalf("rotate of a destroyed key: %v", err)
	}
	next := Create(t, k, s, "ed25519").KID
	if r := Must[api.RotateResponse](t, k, s, "rotate", &api.RotateRequest{OpID: fresh, KID: next}); r.Replayed || r.Key.Head != 2 {
		t.Errorf("rotate with an id of a refused call: %+v", r)
	}
	for _, bad := range []string{"", "x", "00000000-0000-0000-0000-000000000000", "7F000000-0000-4000-8000-000000000001", "{7f000000-0000-4000-8000-000000000001}"} {
		if _, err := Do[api.RotateResponse](k, s, "rotate", &api.RotateRequest{OpID: bad, KID: next}); !api.HasReason(err, api.ReasonOpID) {
			t.Errorf("op_id %q: %v", bad, err)
		}
	}
}
