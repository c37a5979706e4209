package token_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/bindings/go/token"
	"github.com/rustyonions/ron-kms/tests/skip"
)

const root = "../../.."

// vectors are the parts of docs/vectors/token.json for holders of tokens.
type vectors struct {
	Attenuations []attenuation `json:"attenuations"`
	Caveats      struct {
		Good    []string `json:"good"`
		Refused []string `json:"refused"`
	} `json:"caveats"`
	Tokens []struct {
		Token   string   `json:"token"`
		Caveats []string `json:"caveats"`
	} `json:"tokens"`
}

type attenuation struct {
	Name    string   `json:"name"`
	Token   string   `json:"token"`
	Caveats []string `json:"caveats"`
	Result  string   `json:"result"`
}

func read(t *testing.T) vectors {
	t.Helper()
	data, err := os.ReadFile(root + "/docs/vectors/token.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Attenuations) < 20 || len(v.Caveats.Good) < 20 || len(v.Caveats.Refused) < 100 || len(v.Tokens) == 0 {
		t.Fatal("vectors are missing")
	}
	return v
}

// cases are all attenuations: those of the file, and each caveat of the file
// added to its first token. The result is "" for what must be refused, and "+"
// for what must not but is not written down.
func (v vectors) cases() []attenuation {
	list := slices.Clone(v.Attenuations)
	for _, c := range v.Caveats.Good {
		list = append(list, attenuation{"good " + c, v.Tokens[0].Token, []string{c}, "+"})
	}
	for _, c := range v.Caveats.Refused {
		list = append(list, attenuation{"refused " + c, v.Tokens[0].Token, []string{c}, ""})
	}
	return list
}

func judge(t *testing.T, c attenuation, got string) {
	t.Helper()
	if c.Result == "+" && got != "" || got == c.Result {
		return
	}
	t.Errorf("%.100q: got %.20q, want %.20q", c.Name, got, c.Result)
}

func TestGo(t *testing.T) {
	t.Parallel()
	for _, c := range read(t).cases() {
		got, err := token.Attenuate(c.Token, c.Caveats...)
		if (err == nil) != (got != "") {
			t.Errorf("%q: a token and an error", c.Name)
		}
		judge(t, c, got)
	}
	v := read(t).Tokens[0]
	if info, err := token.Inspect(v.Token); err != nil || !slices.Equal(info.UnverifiedCaveats, v.Caveats) {
		t.Errorf("inspect: %+v %v", info, err)
	}
}

// driver reads attenuations as JSON and writes what the Python module makes of
// each: a token, or nothing.
const driver = `
import json, sys
sys.path.insert(0, sys.argv[1])
import ronkms_token
results = []
for case in json.load(sys.stdin):
    try:
        results.append(ronkms_token.attenuate(case["token"], *(case["caveats"] or [])))
    except ronkms_token.Invalid as e:
        assert len(case["token"]) < 24 or case["token"][:24] not in str(e)
        results.append("")
    else:
        assert ronkms_token.caveats(results[-1])[-1] == case["caveats"][-1]
json.dump(results, sys.stdout)
`

// The Python module makes the same tokens, byte for byte, and refuses the
// same.
func TestPython(t *testing.T) {
	t.Parallel()
	skip.Without(t, "python3")
	cases := read(t).cases()
	// What is made there is the same as here, written down or not.
	for i, c := range cases {
		if c.Result == "+" {
			made, err := token.Attenuate(c.Token, c.Caveats...)
			if err != nil {
				t.Fatal(err)
			}
			cases[i].Result = made
		}
	}
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-W", "error", "-B", "-c", driver, root+"/bindings/python")
	cmd.Stdin = bytes.NewReader(in)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var results []string
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(cases) {
		t.Fatalf("%d results: %v", len(results), err)
	}
	for i, c := range cases {
		judge(t, c, results[i])
	}
}
