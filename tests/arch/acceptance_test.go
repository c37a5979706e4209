package arch

import (
	"bytes"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rows is every row of the acceptance table. Rows are never renumbered, and a
// row that goes leaves its number behind.
const rows = `
R-001 R-010 R-011 R-012 R-013 R-014 R-015 R-016 R-020 R-021 R-022 R-030 R-040 R-041 R-042 R-050 R-051 R-060 R-061
R-062 R-063 R-070 R-071 R-072 R-073 R-080 R-081 R-090 R-091 R-100 R-101 R-102 R-110 R-120 R-121 R-130 R-140 R-150
R-160 R-170 R-180 R-190 R-200 R-201 R-202 R-203 R-204 R-205 R-206 R-207 R-208 R-209 R-210 R-211 R-212 R-213 R-214
R-215 R-217 R-218 R-219 R-230 R-231 R-232 R-233 R-234 R-235 R-236 R-237 R-238 R-239 R-240 R-245 R-246 R-247 R-248
R-250 R-251 R-252 R-255 R-256 R-260 R-261 R-262 R-263 R-264 R-265 R-270 R-271 R-272 R-273 R-274 R-280 R-290 R-291
R-292 R-293 R-294 R-295 R-300 R-301 R-302 R-303 R-304 R-305 R-306 R-307 R-308 R-309 R-310 R-311 R-312 R-320 R-321
R-322 R-330 R-331 R-332 R-333 R-334 R-335 R-336 R-340 R-341 R-401 R-402 R-403 R-404 R-405 R-406 R-407 R-408 R-409
R-410 R-411 R-412 R-413 R-414 R-415 R-501 R-502 R-503 R-504 R-505 R-506 R-507 R-510 R-511 R-512 R-513 R-514 R-520`

const acceptance = "docs/acceptance.md"

var (
	rowLine   = regexp.MustCompile(`^\| (R-\d{3}) \| (.+) \| (.+) \|$`)
	testName  = regexp.MustCompile("`((?:Test|Fuzz|Benchmark|Example)[A-Za-z0-9_]*)`")
	pathName  = regexp.MustCompile("`([a-z.][A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*)`")
	makeName  = regexp.MustCompile("`make ([a-z]+)`")
	seeRow    = regexp.MustCompile(`\bsee (R-\d{3})\b`)
	mentioned = regexp.MustCompile(`R-\d{3}`)
	ranges    = regexp.MustCompile(`(R-\d{3}) to (R-\d{3})`)
)

// testFunctions maps the name of each test function to the files that have one
// of that name.
func testFunctions(t *testing.T) map[string][]source {
	t.Helper()
	found := make(map[string][]source)
	for _, s := range sources(t) {
		if !s.Test {
			continue
		}
		for _, d := range s.File.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				found[f.Name.Name] = append(found[f.Name.Name], s)
			}
		}
	}
	return found
}

// names reports whether a file names a row, alone or within "R-290 to R-295".
func names(s source, row string) bool {
	for _, m := range ranges.FindAllSubmatch(s.Text, -1) {
		if string(m[1]) <= row && row <= string(m[2]) {
			return true
		}
	}
	return slices.ContainsFunc(mentioned.FindAll(s.Text, -1), func(m []byte) bool { return string(m) == row })
}

// Each row stands in docs/acceptance.md once, and what it names as proof is
// there: a test whose file names the row, a file, a make target, or another row.
//
func TestAcceptanceTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, acceptance))
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testFunctions(t)
	want := strings.Fields(rows)
	seen := make(map[string]int)
	for n, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| R-") {
			continue
		}
		m := rowLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("line %d is not `| R-nnn | words | proof |`", n+1)
			continue
		}
		row, proof := m[1], m[3]
		seen[row]++
		if !slices.Contains(want, row) {
			t.Errorf("%s is not a row of the table", row)
		}
		proofs := 0
		for _, m := range testName.FindAllStringSubmatch(proof, -1) {
			proofs++
			files := tests[m[1]]
			if len(files) == 0 {
				t.Errorf("%s: there is no test %s", row, m[1])
			} else if !slices.ContainsFunc(files, func(s source) bool { return names(s, row) }) {
				t.Errorf("%s: the file of %s, %s, does not name the row", row, m[1], files[0].Name)
			}
		}
		for _, m := range pathName.FindAllStringSubmatch(proof, -1) {
			proofs++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s: there is no %s", row, m[1])
			}
		}
		for _, m := range makeName.FindAllStringSubmatch(proof, -1) {
			proofs++
			if !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
				t.Errorf("%s: there is no make target %s", row, m[1])
			}
		}
		for _, m := range seeRow.FindAllStringSubmatch(proof, -1) {
			proofs++
			if m[1] == row || !slices.Contains(want, m[1]) {
				t.Errorf("%s: there is no other row %s", row, m[1])
			}
		}
		if proofs == 0 && !strings.Contains(proof, "not yet") {
			t.Errorf("%s: names no proof and does not say \"not yet\"", row)
		}
	}
	for _, row := range want {
		if seen[row] != 1 {
			t.Errorf("%s stands in %s %d times", row, acceptance, seen[row])
		}
	}
}

// A test that names a row which does not exist proves nothing.
//
func TestRowsThatTestsNameExist(t *testing.T) {
	t.Parallel()
	want := strings.Fields(rows)
	if len(want) != 152 {
		t.Errorf("the table has %d rows, not 152", len(want))
	}
	for _, s := range sources(t) {
		if !s.Test || in(s.Dir, "tests/arch") {
			continue
		}
		for _, m := range mentioned.FindAll(s.Text, -1) {
			if !slices.Contains(want, string(m)) {
				t.Errorf("%s names %s, which is not a row", s.Name, m)
			}
		}
	}
}
