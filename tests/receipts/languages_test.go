package receipts

import (
	"testing"

	"github.com/rustyonions/ron-kms/tests/skip"
)

// The unit tests and the example of the Rust crate.
func TestRust(t *testing.T) {
	t.Parallel()
	skip.Without(t, "cargo")
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	if err := cargo("test"); err != nil {
		t.Error(err)
	}
}

// sessions of the Python module check the receipt of every result, under
// the kid that was asked for, before they return it.
func TestPythonSessions(t *testing.T) {
	t.Parallel()
	skip.Without(t, "python3")
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	if err := tool("python3", "-W", "error", "drive/sessions.py"); err != nil {
		t.Error(err)
	}
}

// The header of the C implementation stands alone, in C and in C++; and the
// compiler's analysis finds nothing in its code.
func TestC(t *testing.T) {
	t.Parallel()
	skip.Without(t, "gcc", "g++")
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	warnings := []string{"-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"}
	header := root + "/bindings/c/ronkms_receipts.h"
	for _, c := range [][]string{
		{"gcc", "-std=c11", "-x", "c", header},
		{"g++", "-std=c++11", "-x", "c++", header},
		{"gcc", "-std=c11", "-O2", "-fanalyzer", root + "/bindings/c/ronkms_receipts.c"},
		{"gcc", "-std=gnu17", "-O2", root + "/bindings/c/ronkms_receipts.c"},
	} {
		if err := tool(c[0], append(warnings, c[1:]...)...); err != nil {
			t.Error(err)
		}
	}
}
