package policy

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// a tenant that asks very many questions takes neither the
// answers to the others nor all the questions that may be under way.
func TestEngineTenantsApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		remote := &saying{decision: neutral()}
		e := newEngine(t, Options{Remote: remote, Entries: 64, TTL: time.Hour, MaxTTL: time.Hour})
		defer e.Close()
		if _, err := e.Decide(t.Context(), sign("quiet"), Private); err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			in := sign("loud")
			in.Purpose = fmt.Sprint("p", i)
			if _, err := e.Decide(t.Context(), in, Private); err != nil {
				t.Fatal(err)
			}
		}
		n := remote.count()
		if a, err := e.Decide(t.Context(), sign("quiet"), Private); err != nil || !a.Cached || remote.count() != n {
			t.Errorf("the quiet tenant's answer is gone: %+v, %v", a, err)
		}
		if s := e.Status(); s.Entries != 64 {
			t.Errorf("%d entries", s.Entries)
		}
		// Tenants alone do not fill the memory either.
		remote.say(Decision{}, errDown)
		for i := range 1000 {
			e.Decide(t.Context(), verify(fmt.Sprint("t", i)), Verify)
			synctest.Wait()
		}
		e.mu.Lock()
		if n := len(e.cache.tenants); n > 2*64 {
			t.Errorf("%d tenants are remembered", n)
		}
		e.mu.Unlock()

		hold := make(chan struct{})
		slow := newEngine(t, Options{InFlight: 8, Timeout: time.Hour, Remote: pointFunc(func(_ context.Context, in Input) (Decision, error) {
			if in.Tenant == "loud" {
				<-hold
			}
			return neutral(), nil
		})})
		defer slow.Close()
		var wg sync.WaitGroup
		var busy atomic.Int32
		for i := range 20 {
			in := sign("loud")
			in.Purpose = fmt.Sprint("p", i)
			wg.Go(func() {
				if _, err := slow.Decide(t.Context(), in, Private); api.HasReason(err, api.ReasonPolicyDown) {
					busy.Add(1)
				}
			})
		}
		synctest.Wait()
		if _, err := slow.Decide(t.Context(), sign("quiet"), Private); err != nil || busy.Load() != 18 {
			t.Errorf("%d refused, and the quiet one: %v", busy.Load(), err)
		}
		close(hold)
		wg.Wait()
	})
}

// Of one tenant's answers the least recently used goes.
func TestEngineLeastRecentlyUsed(t *testing.T) {
	t.Parallel()
	remote := &saying{decision: andMode("v1", time.Minute)}
	e := newEngine(t, Options{Remote: remote, Entries: 2})
	ask := func(purpose string) Answer {
		in := sign("acme")
		in.Purpose = purpose
		a, err := e.Decide(t.Context(), in, Private)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	ask("a")
	ask("b")
	ask("a")
	ask("c") // b goes
	if !ask("a").Cached || !ask("c").Cached || ask("b").Cached {
		t.Error("another than the least recently used went")
	}
}

// The failing questions of one tenant do not make another's verify go on
// without asking.
func TestEngineOutageOfOneTenant(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{Remote: pointFunc(func(_ context.Context, in Input) (Decision, error) {
		if in.Tenant == "loud" {
			return Decision{}, errDown
		}
		return andMode("v1", 0), nil
	})})
	for range 3 {
		if a, err := e.Decide(t.Context(), verify("loud"), Verify); err != nil || !a.Degraded {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if a, err := e.Decide(t.Context(), verify("quiet"), Verify); err != nil || a.Degraded || a.Mode != alg.ModeAnd {
		t.Errorf("%+v, %v", a, err)
	}
}

// A decision is never used for a question that it was not the answer to: the
// question, as it was told, is all of the key.
func TestEngineQuestionIsTheKey(t *testing.T) {
	t.Parallel()
	fields := reflect.TypeFor[Input]()
	change := func(in Input, i int) Input {
		switch v := reflect.ValueOf(&in).Elem().Field(i); v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int64:
			v.SetInt(v.Int() + 1)
		default:
			in.Now = in.Now.Add(time.Second)
		}
		return in
	}
	for _, tell := range []bool{false, true} {
		remote := &saying{decision: andMode("v1", time.Minute)}
		e := newEngine(t, Options{Remote: remote, TellKID: tell, TellActor: tell})
		for i := range fields.NumField() {
			field := fields.Field(i).Name
			if field == "Method" {
				continue // a closed list: see below
			}
			e.Forget()
			base, other := sign("acme"), change(sign("acme"), i)
			if _, err := e.Decide(t.Context(), base, Private); err != nil {
				t.Fatal(err)
			}
			told, n := remote.last, remote.count()
			if told.Now.IsZero() {
				t.Error("the question has no time")
			}
			if told.KID != "" && !tell || told.ActorID != "" && !tell {
				t.Errorf("%+v is told", told)
			}
			if _, err := e.Decide(t.Context(), other, Private); err != nil {
				t.Fatal(err)
			}
			asked := remote.count() != n
			known := reflect.ValueOf(told).Field(i).Interface() == reflect.ValueOf(base).Field(i).Interface()
			if field == "Now" {
				known = false // the TTL bounds it
			}
			if field == "BodyBytes" && told.BodyBytes != 0 {
				t.Error("the size of the body is told")
			}
			if field == "BodyBytes" {
				known = false
			}
			if asked != known {
				t.Errorf("%s: told %v, asked again %v", field, known, asked)
			}
		}
		e.Forget()
		n := remote.count()
		for _, method := range methods {
			in := sign("acme")
			in.Method = method
			if _, err := e.Decide(t.Context(), in, Private); err != nil {
				t.Fatal(err)
			}
		}
		if got := remote.count() - n; got != len(methods) {
			t.Errorf("%d methods, %d questions", len(methods), got)
		}
	}
}
