package abi

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

func header(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(root + "/include/ronkms.h")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// header and error table agree in every name and number.
func TestHeaderStatuses(t *testing.T) {
	got := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^    RONKMS_(OK|ERR_[A-Z_]+) = (\d+)`).FindAllStringSubmatch(header(t), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		got[m[1]] = n
	}
	want := map[string]int{"OK": 0}
	for s := api.Status(1); int(s) < api.Statuses; s++ {
		want["ERR_"+s.String()] = int(s)
	}
	if !maps.Equal(got, want) {
		t.Errorf("header has %v\ntable has %v", got, want)
	}
}

// The maxima in the header are those of the code, and RONKMS_MAX_SIGNATURE is
// enough for every algorithm with the longest kid.
func TestHeaderLimits(t *testing.T) {
	got := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^#define RONKMS_(MAX_[A-Z]+|DIGEST_SIZE) (\d+)`).FindAllStringSubmatch(header(t), -1) {
		got[m[1]], _ = strconv.Atoi(m[2])
	}
	want := map[string]int{
		"DIGEST_SIZE": 32, "MAX_CONTEXT": api.MaxContext, "MAX_KID": api.MaxKID, "MAX_TOKEN": api.MaxToken,
		"MAX_CONFIG": 64 << 10, "MAX_REQUEST": api.MaxRequestBody, "MAX_SIGNATURE": got["MAX_SIGNATURE"],
	}
	if !maps.Equal(got, want) {
		t.Errorf("header has %v, code has %v", got, want)
	}
	for _, a := range alg.All() {
		if !a.Allows(alg.OpSign) {
			continue
		}
		size := 2
		for _, track := range a.Tracks() {
			size += 6 + api.MaxKID + len(track.Name()) + track.SignatureSize()
		}
		if size > got["MAX_SIGNATURE"] {
			t.Errorf("a bundle of %s can have %d bytes, more than RONKMS_MAX_SIGNATURE", a.Name(), size)
		}
	}
}

// The header lists every verb of ronkms_call.
func TestHeaderVerbs(t *testing.T) {
	text := header(t)
	comment := text[strings.Index(text, "/* ronkms_call "):strings.Index(text, "ronkms_call(ronkms_session")]
	for _, v := range core.Verbs() {
		if !regexp.MustCompile(`\b` + v.Name + `\b`).MatchString(comment) {
			t.Errorf("the comment of ronkms_call does not name %s", v.Name)
		}
	}
}

// The library exports what the header declares and nothing else, under one
// symbol version and with the soname that programs record.
func TestExports(t *testing.T) {
	needs(t, "nm", "readelf")
	declared := regexp.MustCompile(`(?m)^RONKMS_API[^;(]*?\b(ronkms_\w+)\(`).FindAllStringSubmatch(header(t), -1)
	var want []string
	for _, m := range declared {
		want = append(want, m[1]+"@@RONKMS_0")
	}
	var got []string
	for line := range strings.Lines(output(t, "nm", "-D", "--defined-only", libDir+"/libronkms.so.0")) {
		f := strings.Fields(line)
		if len(f) == 3 && f[1] != "A" {
			got = append(got, f[2])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("exported: %v\ndeclared: %v", got, want)
	}
	dynamic := output(t, "readelf", "-d", libDir+"/libronkms.so.0")
	for _, text := range []string{"soname: [libronkms.so.0]", "NODELETE", "NOW"} {
		if !strings.Contains(dynamic, text) {
			t.Errorf("the dynamic section has no %q:\n%s", text, dynamic)
		}
	}
}

// Every function's comment begins with its name and says since when it is
// there.
func TestHeaderComments(t *testing.T) {
	text := header(t)
	for _, m := range regexp.MustCompile(`(?ms)\*/\nRONKMS_API[^;(]*?\b(ronkms_\w+)\(`).FindAllStringSubmatchIndex(text, -1) {
		name := text[m[2]:m[3]]
		comment := text[strings.LastIndex(text[:m[0]], "/*"):m[0]]
		if !strings.HasPrefix(comment, "/* "+name+" ") || !strings.Contains(comment, "Since ABI 0.1.") {
			t.Errorf("comment of %s: %s", name, comment)
		}
	}
}

// The header is plain C99 and C++.
func TestHeaderLanguages(t *testing.T) {
	needs(t, "g++")
	warnings := []string{"-Wall", "-Wextra", "-Werror", "-pedantic", "-I", root + "/include", "-fsyntax-only"}
	for _, std := range []string{"c++11", "c++17", "c++20"} {
		output(t, "g++", append(warnings, "-std="+std, "c/header.cc")...)
	}
	for _, std := range []string{"c99", "c11", "gnu17"} {
		output(t, "gcc", append(warnings, "-std="+std, "-x", "c", root+"/include/ronkms.h")...)
	}
}

// A wrong type in the header does not compile against the shim.
func TestHeaderDrift(t *testing.T) {
	needs(t)
	text := header(t)
	wrong := strings.Replace(text, "ronkms_verify(ronkms_session session,", "ronkms_verify(ronkms_kms session,", 1)
	if wrong == text {
		t.Fatal("ronkms_verify is not declared as this test knows it")
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/ronkms.h", []byte(wrong), 0o600); err != nil {
		t.Fatal(err)
	}
	// The shim's other include is made by the Go build; here an empty one will
	// do, for the declarations conflict before it matters.
	if err := os.WriteFile(dir+"/_cgo_export.h", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shim, err := os.ReadFile(root + "/capi/shim.c")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/shim.c", shim, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("gcc", "-fsyntax-only", dir+"/shim.c").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "conflicting types for ‘ronkms_verify’") && !strings.Contains(string(out), "conflicting types for 'ronkms_verify'") {
		t.Errorf("a drifted header compiles: %s", out)
	}
}

// The Python module's structs have the layout of the C compiler's.
func TestLayout(t *testing.T) {
	needs(t, "python3")
	decode := func(text string) map[string]any {
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	c := decode(output(t, compile(t, "c/layout.c")))
	python := decode(outputEnv(t, pythonEnv(), "python3", "layout.py"))
	if len(c) < 30 || !reflect.DeepEqual(c, python) {
		t.Errorf("C:      %v\nPython: %v", c, python)
	}
}

func pythonEnv() []string {
	return []string{
		"PYTHONPATH=" + root + "/bindings/python", "PYTHONDONTWRITEBYTECODE=1",
		"RONKMS_LIBRARY=" + libDir + "/libronkms.so.0",
	}
}
