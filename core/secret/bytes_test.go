package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/secret"
)

// shows reports whether text has canary in it, in any of the usual spellings.
func shows(text string, canary []byte) bool {
	for _, s := range []string{
		string(canary), hex.EncodeToString(canary), strings.ToUpper(hex.EncodeToString(canary)),
		base64.StdEncoding.EncodeToString(canary)[:8],
		strings.Trim(fmt.Sprint(canary), "[]"), // 99 97 110 …
		strings.Trim(fmt.Sprintf("%#v", canary), "[]byte{}"),
	} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// nothing that prints or encodes a value reveals the secret.
func TestFormattingRevealsNothing(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	canary := []byte("canary-5f1e")
	b := fill(t, a, canary)
	type wrap struct{ Secret, unexported any }
	values := map[string]any{
		"pointer": b, "value": *b, "slice": []*secret.Bytes{b}, "map": map[string]*secret.Bytes{"k": b},
		"exported": struct{ S *secret.Bytes }{b}, "unexported": struct{ s *secret.Bytes }{b},
		"value in struct": struct{ s secret.Bytes }{*b}, "any": wrap{b, b}, "arena": a, "arena value": struct{ a *secret.Arena }{a},
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "% x", "%q", "%d", "%o", "%b", "%c", "%U", "%t", "%p"} {
			if out := fmt.Sprintf(verb, v); shows(out, canary) {
				t.Errorf("%s %s: %s", name, verb, out)
			}
		}
		out, err := json.Marshal(v)
		if err == nil && shows(string(out), canary) {
			t.Errorf("%s json: %s", name, out)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, v := range []any{b, *b} {
			if out := fmt.Sprintf(verb, v); out != "[secret]" {
				t.Errorf("%s = %q", verb, out)
			}
		}
	}
	if b.String() != "[secret]" || b.GoString() != "[secret]" {
		t.Error("String or GoString")
	}
	if text, err := b.MarshalText(); err != nil || string(text) != "[secret]" {
		t.Errorf("text = %q, %v", text, err)
	}
	if out, err := json.Marshal(map[string]any{"k": b}); err != nil || string(out) != `{"k":"[secret]"}` {
		t.Errorf("json = %s, %v", out, err)
	}
	if _, err := b.MarshalBinary(); err == nil {
		t.Error("MarshalBinary gave bytes")
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(b); err == nil {
		t.Error("gob stored a secret")
	}
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("m", "k", b, "v", *b)
	slog.New(slog.NewTextHandler(&buf, nil)).Info("m", "k", b, "v", *b)
	if shows(buf.String(), canary) || !strings.Contains(buf.String(), "[secret]") {
		t.Errorf("log: %s", buf.String())
	}
}

// what follows pointers and fields by reflection, as dump libraries do,
// does not get to the region either, nor to the state of the random generator.
func TestReflectionDoesNotReachTheRegion(t *testing.T) {
	t.Parallel()
	a := newArena(t, 1)
	b := fill(t, a, []byte("canary-5f1e"))
	region := a.Addr()
	type place struct {
		addr uintptr
		typ  reflect.Type
	}
	seen := map[place]bool{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.UnsafePointer:
			p := v.Pointer()
			if p >= region && p < region+uintptr(len(a.Region())) {
				t.Errorf("%s leads into the locked region", v.Type())
			}
			if strings.Contains(v.Type().String(), "drbg.DRBG") {
				t.Error("a pointer leads to the state of the generator")
			}
			if at := (place{p, v.Type()}); v.Kind() == reflect.Pointer && p != 0 && !seen[at] {
				seen[at] = true
				walk(v.Elem())
			}
		case reflect.Uintptr:
			if p := uintptr(v.Uint()); p >= region && p < region+uintptr(len(a.Region())) {
				t.Error("a number is an address of the locked region")
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		case reflect.Interface:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Map:
			for it := v.MapRange(); it.Next(); {
				walk(it.Key())
				walk(it.Value())
			}
		}
	}
	walk(reflect.ValueOf(b))
	if len(seen) < 3 {
		t.Errorf("walked over %d pointers only: the test looks at nothing", len(seen))
	}
}

//
func TestEqual(t *testing.T) {
	t.Parallel()
	a, other := newArena(t, 1), newArena(t, 1)
	base := []byte("0123456789abcdef")
	x := fill(t, a, base)
	if !x.Equal(x) || !x.Equal(fill(t, a, base)) || !x.Equal(fill(t, other, base)) {
		t.Error("equal secrets differ")
	}
	for i := range base {
		p := bytes.Clone(base)
		p[i] ^= 1
		if x.Equal(fill(t, a, p)) {
			t.Errorf("byte %d is not compared", i)
		}
	}
	if x.Equal(fill(t, a, base[:15])) || x.Equal(fill(t, a, append(bytes.Clone(base), 0))) || x.Equal(nil) {
		t.Error("lengths are not compared")
	}
}
