// Command licences checks that every module that is built into the product, or
// used by its tests, has a licence that allows it. It reads the modules'
// licence files itself, so it needs no network and no database.
//
//	licences <root of the repository>
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A licence is known by a phrase that its text has and no other's.
var licences = []struct {
	name, phrase string
	product      bool // may be part of what users ship; else of tests only
}{
	// First those that would be mistaken for others or are refused.
	{"GPL family", "gnu general public license", false},
	{"LGPL", "gnu lesser general public license", false},
	{"AGPL", "gnu affero general public license", false},
	{"MPL-2.0", "mozilla public license version 2.0", false},
	{"Apache-2.0", "apache license version 2.0", true},
	{"MIT", "permission is hereby granted, free of charge", true},
	{"BSD", "redistribution and use in source and binary forms", true},
	{"ISC", "permission to use, copy, modify, and/or distribute", true},
	{"CC-BY-SA-4.0", "attribution-sharealike 4.0 international", false},
	{"CC0", "cc0 1.0 universal", true},
	{"CC0", "cc0 1.0 deed", true},
}

var refused = []string{"GPL family", "LGPL", "AGPL"}

// linkable is LGPL-3.0 with the exception that lets a program be linked with
// the library and given to others without what sections 4d and 4e ask for. What
// remains is said in NOTICE: the library is named, and its licence goes along.
const (
	linkable       = "LGPL-3.0 with linking exception"
	linkablePhrase = "convey to a third party a combined work that links statically or dynamically to this library without providing any minimal corresponding source"
)

// exceptions are modules that may have the licence linkable, and why. Each is
// named in NOTICE.
var exceptions = map[string]string{
	"github.com/canonical/go-sp800.90a-drbg": "HMAC_DRBG of SP 800-90A that takes its inputs from outside, as the NIST vectors and the tests of the entropy source need; to write one would be an own primitive",
}

type module struct {
	Path, Version, Dir string
	Main               bool
	Replace            *module
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: licences <root of the repository>")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	product, err := modules(root, "-deps")
	if err != nil {
		return err
	}
	tests, err := modules(root, "-deps", "-test")
	if err != nil {
		return err
	}
	var bad []error
	paths := make([]string, 0, len(tests))
	for path := range tests {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		m := tests[path]
		_, shipped := product[path]
		use := "tests"
		if shipped {
			use = "product"
		}
		names, err := identify(m.Dir)
		if err == nil {
			err = judge(path, names, shipped)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s %s (%s): %w", m.Path, m.Version, use, err))
			continue
		}
		fmt.Printf("%-8s %-44s %s\n", use, m.Path, strings.Join(names, ", "))
	}
	if len(paths) == 0 {
		bad = append(bad, errors.New("no modules found"))
	}
	return errors.Join(bad...)
}

// modules lists the modules that the packages of the repository are made of.
func modules(root string, flags ...string) (map[string]module, error) {
	pattern := []string{"./audit/...", "./backends/...", "./core/...", "./capi/...", "./cmd/..."}
	if slices.Contains(flags, "-test") {
		pattern = []string{"./..."}
	} else {
		pattern = slices.DeleteFunc(pattern, func(p string) bool {
			_, err := os.Stat(filepath.Join(root, strings.TrimSuffix(p, "/...")))
			return err != nil
		})
		// Packages for tests are not shipped, whatever they import.
		list, err := goList(root, append([]string{"-f", "{{.ImportPath}}"}, pattern...)...)
		if err != nil {
			return nil, err
		}
		pattern = slices.DeleteFunc(strings.Fields(string(list)), func(p string) bool { return strings.HasSuffix(p, "test") })
	}
	out, err := goList(root, append(append(flags, "-json=Module"), pattern...)...)
	if err != nil {
		return nil, err
	}
	found := make(map[string]module)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *module }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		m := p.Module
		if m == nil || m.Main {
			continue // the standard library (BSD), and ourselves
		}
		if m.Replace != nil {
			m = m.Replace
		}
		found[m.Path] = *m
	}
}

func goList(root string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	// A caller's -modfile is about the tools, not about the product.
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	return cmd.Output()
}

// identify names the licences in the files at the top of dir.
func identify(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(upper, "LICEN") && !strings.HasPrefix(upper, "COPYING") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		plain := strings.Join(strings.Fields(strings.ToLower(string(text))), " ")
		plain = strings.ReplaceAll(plain, "license, version", "license version")
		if strings.Contains(plain, linkablePhrase) && strings.Contains(plain, "gnu lesser general public license version 3") {
			names = append(names, linkable)
			continue
		}
		known := false
		for _, l := range licences {
			// The MPL speaks of the GPL as a secondary licence.
			secondary := slices.Contains(refused, l.name) && strings.Contains(plain[:min(len(plain), 100)], "mozilla public license")
			if !strings.Contains(plain, l.phrase) || secondary {
				continue
			}
			known = true
			if !slices.Contains(names, l.name) {
				names = append(names, l.name)
			}
		}
		if !known {
			return nil, fmt.Errorf("%s is of a kind this check does not know", e.Name())
		}
	}
	if len(names) == 0 {
		return nil, errors.New("no licence file")
	}
	return names, nil
}

// judge says whether a module with these licences may be used. Where there are
// several, each must be acceptable: they cover different parts.
func judge(path string, names []string, shipped bool) error {
	if slices.Contains(names, linkable) && exceptions[path] == "" {
		return fmt.Errorf("%s is allowed for named modules only", linkable)
	}
	for _, l := range licences {
		switch {
		case !slices.Contains(names, l.name):
		case slices.Contains(refused, l.name):
			return fmt.Errorf("%s is not allowed", l.name)
		case shipped && !l.product:
			return fmt.Errorf("%s is allowed for tests only", l.name)
		}
	}
	return nil
}
