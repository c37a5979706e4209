package receipts

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

type receipt struct {
	Log            string `json:"log"`
	LogIndex       uint64 `json:"log_index"`
	KeySeq         uint64 `json:"key_seq"`
	CheckpointSize uint64 `json:"checkpoint_size"`
}

// A step has one of Mark, Check, Accept, Forget and Save.
type step struct {
	Mark    *string `json:"mark"`
	Check   *string `json:"check"` // the mark
	KID     string  `json:"kid"`
	Receipt receipt `json:"receipt"`
	Accept  *string `json:"accept"`
	Forget  *string `json:"forget"`
	Save    *string `json:"save"` // what the file is after it
	Want    string  `json:"want"`
}

type vectors struct {
	Spec      string `json:"spec"`
	Scenarios []struct {
		Name    string `json:"name"`
		MaxKeys int    `json:"max_keys"`
		Steps   []step `json:"steps"`
	} `json:"scenarios"`
	Files []struct {
		Name    string `json:"name"`
		Text    string `json:"text"`
		Want    string `json:"want"`
		MaxKeys int    `json:"max_keys"`
		Then    struct {
			KID     string  `json:"kid"`
			Receipt receipt `json:"receipt"`
			Want    string  `json:"want"`
			Saved   string  `json:"saved"`
		} `json:"then"`
	} `json:"files"`
}

func load(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile(root + "/docs/vectors/receipts.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Scenarios) < 40 || len(v.Files) < 50 {
		t.Fatalf("only %d scenarios and %d files", len(v.Scenarios), len(v.Files))
	}
	return v
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func check(mark, kid string, r receipt) []string {
	return []string{"check", mark, kid, r.Log, number(r.LogIndex), number(r.KeySeq), number(r.CheckpointSize)}
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// each runs a test once for each language.
func each(t *testing.T, test func(t *testing.T, p peer)) {
	t.Parallel()
	for name, start := range languages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t)
			defer p.stop()
			test(t, p)
			p.finish(t)
		})
	}
}

// expect does a command whose answer is known.
func expect(t *testing.T, p peer, want string, fields ...string) {
	t.Helper()
	if got := p.do(t, fields...); got != want {
		t.Errorf("%q is %q, want %q", fields, got, want)
	}
}

// a service that was put back is refused, under each rule, by
// each implementation; one that goes on is not, in whatever order it answers.
func TestScenarios(t *testing.T) {
	v := load(t)
	each(t, func(t *testing.T, p peer) {
		dir := t.TempDir()
		for i, s := range v.Scenarios {
			t.Run(s.Name, func(t *testing.T) {
				path := filepath.Join(dir, strconv.Itoa(i))
				expect(t, p, "ok", "create", path, strconv.Itoa(s.MaxKeys))
				for n, step := range s.Steps {
					var command []string
					want := step.Want
					switch {
					case step.Mark != nil:
						command, want = []string{"mark", *step.Mark}, "ok"
					case step.Check != nil:
						command = check(*step.Check, step.KID, step.Receipt)
					case step.Accept != nil:
						command = []string{"accept", *step.Accept}
					case step.Forget != nil:
						command = []string{"forget", *step.Forget}
					case step.Save != nil:
						command, want = []string{"save"}, "ok"
					}
					if got := p.do(t, command...); got != want {
						t.Fatalf("step %d, %q, is %q, want %q", n, command, got, want)
					}
					if step.Save == nil {
						continue
					}
					if got := contents(t, path); got != *step.Save {
						t.Fatalf("step %d: the file is\n%s\nwant\n%s", n, got, *step.Save)
					}
				}
				expect(t, p, "ok", "close")
			})
		}
	})
}

// What is no book is refused and left as it is, and never taken for an
// empty one; what is one is read as it was written.
func TestFiles(t *testing.T) {
	v := load(t)
	each(t, func(t *testing.T, p peer) {
		dir := t.TempDir()
		for i, f := range v.Files {
			t.Run(f.Name, func(t *testing.T) {
				path := filepath.Join(dir, strconv.Itoa(i))
				if err := os.WriteFile(path, []byte(f.Text), 0o600); err != nil {
					t.Fatal(err)
				}
				expect(t, p, f.Want, "open", path, strconv.Itoa(max(f.MaxKeys, 1)))
				want := f.Text
				if f.Want == "ok" {
					want = f.Then.Saved
					expect(t, p, "ok", "mark", "m")
					expect(t, p, f.Then.Want, check("m", f.Then.KID, f.Then.Receipt)...)
					expect(t, p, "ok", "close")
				}
				if got := contents(t, path); got != want {
					t.Errorf("the file is\n%s\nwant\n%s", got, want)
				}
			})
		}
	})
}
