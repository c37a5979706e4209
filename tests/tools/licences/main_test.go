package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentifyAndJudge(t *testing.T) {
	t.Parallel()
	const (
		mit    = "Permission is hereby granted, free of charge, to any person"
		bsd    = "Redistribution and use in source\n and binary forms, with or without"
		apache = "Apache License\n   Version 2.0, January 2004"
		mpl    = "Mozilla Public License Version 2.0\n … GNU General Public License, Version 2.0 …"
		gpl    = "GNU GENERAL PUBLIC LICENSE\n Version 3"
		lgpl   = "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3"
		linked = "you may convey to a third party a Combined Work that links statically or dynamically\n" +
			"to this Library without providing any Minimal Corresponding Source …\n" + lgpl
	)
	for _, c := range []struct {
		name           string
		files          map[string]string
		shipped, tests bool // accepted there
	}{
		{"mit", map[string]string{"LICENSE": mit}, true, true},
		{"bsd", map[string]string{"LICENSE.txt": bsd}, true, true},
		{"apache", map[string]string{"COPYING": apache}, true, true},
		{"two", map[string]string{"LICENSE": mit, "LICENSE.libyaml": bsd}, true, true},
		{"british", map[string]string{"LICENCE": mit}, true, true},
		{"mpl", map[string]string{"LICENSE": mpl}, false, true},
		{"gpl", map[string]string{"LICENSE": gpl}, false, false},
		{"lgpl", map[string]string{"LICENSE": lgpl}, false, false},
		{"lgpl with an exception, not named", map[string]string{"LICENSE": linked}, false, false},
		{"one of two refused", map[string]string{"LICENSE": mit, "COPYING": gpl}, false, false},
		{"none", map[string]string{"README": mit}, false, false},
		{"unknown", map[string]string{"LICENSE": "Ask us first."}, false, false},
		{"known and unknown", map[string]string{"LICENSE": mit, "LICENSE.docs": "Ask us first."}, false, false},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		names, err := identify(dir)
		shipped := err == nil && judge("example.org/module", names, true) == nil
		tests := err == nil && judge("example.org/module", names, false) == nil
		if shipped != c.shipped || tests != c.tests {
			t.Errorf("%s: shipped %t, tests %t; want %t, %t (%v, %v)", c.name, shipped, tests, c.shipped, c.tests, names, err)
		}
	}
}

// A module that is named may be linked as long as its licence has the
// exception, and no longer.
func TestExceptions(t *testing.T) {
	t.Parallel()
	const named = "github.com/canonical/go-sp800.90a-drbg"
	if err := judge(named, []string{linkable}, true); err != nil {
		t.Error(err)
	}
	for _, names := range [][]string{{"LGPL"}, {"GPL family", "LGPL"}, {linkable, "AGPL"}} {
		if judge(named, names, true) == nil {
			t.Errorf("%v is allowed", names)
		}
	}
	notice, err := os.ReadFile("../../../NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	for path := range exceptions {
		if !strings.Contains(string(notice), path) {
			t.Errorf("NOTICE does not name %s", path)
		}
	}
}
