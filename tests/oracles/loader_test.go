package oracles

import (
	"testing"
	"testing/fstest"

	"github.com/c2sp/wycheproof"
)

// A loader that finds nothing must not pass.
func TestLoaderFails(t *testing.T) {
	t.Parallel()
	type g = group[struct{}, vector]
	size := func(x g) int { return len(x.tests) }
	fsys := fstest.MapFS{}
	for name, text := range map[string]string{
		"empty.json":    `{"numberOfTests":0,"testGroups":[]}`,
		"no-tests.json": `{"numberOfTests":0,"testGroups":[{"tests":[]}]}`,
		"fewer.json":    `{"numberOfTests":2,"testGroups":[{"tests":[{"tcId":1,"result":"valid"}]}]}`,
		"broken.json":   `{"numberOfTests":1,"testGroups":[{"tests":[{"tcId":1`,
		"good.json":     `{"numberOfTests":1,"testGroups":[{"tests":[{"tcId":1,"result":"valid"}]}]}`,
	} {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for _, name := range []string{"empty.json", "no-tests.json", "fewer.json", "broken.json", "absent.json"} {
		if _, err := readWycheproof(fsys, name, size); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if groups, err := readWycheproof(fsys, "good.json", size); err != nil || len(groups) != 1 {
		t.Error(groups, err)
	}
	if _, err := readWycheproof(wycheproof.TestVectors, "absent.json", size); err == nil {
		t.Error("absent.json: no error")
	}
	if (vector{Result: "valid"}).verdict(false) == nil || (vector{Result: "invalid"}).verdict(true) == nil {
		t.Error("a wrong verdict is no error")
	}
	if len(files) == 0 {
		t.Error("there are no files")
	}
}
