package oracles

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
)

// NIST's vectors come with the sources of circl, in the folder of the module.
var circlDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/circl").Output()
	return strings.TrimSpace(string(out)), err
})

// acvpVector is a vector of any kind, with its answer.
type acvpVector struct {
	TcID        int
	Seed        hexBytes // ML-DSA
	D, Z        hexBytes // ML-KEM
	PK, EK      hexBytes
	M, C, K     hexBytes
	set, method string // of the group
}

type acvpText struct {
	TestGroups []struct {
		TgID         int
		ParameterSet string
		Function     string
		Tests        []json.RawMessage
	}
}

func readACVP(folder string) (all []acvpVector, err error) {
	dir, err := circlDir()
	if err != nil {
		return nil, err
	}
	var texts [2]acvpText
	for i, name := range []string{"prompt.json.gz", "expectedResults.json.gz"} {
		packed, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(folder), name))
		if err != nil {
			return nil, err
		}
		r, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		if err := json.NewDecoder(r).Decode(&texts[i]); err != nil {
			return nil, err
		}
	}
	prompts, answers := texts[0].TestGroups, texts[1].TestGroups
	if len(prompts) != len(answers) {
		return nil, fmt.Errorf("%s: %d groups and %d with answers", folder, len(prompts), len(answers))
	}
	for i, g := range prompts {
		if g.TgID != answers[i].TgID || len(g.Tests) != len(answers[i].Tests) {
			return nil, fmt.Errorf("%s: answers to group %d are of another", folder, g.TgID)
		}
		for j := range g.Tests {
			v := acvpVector{set: g.ParameterSet, method: g.Function}
			if err := json.Unmarshal(g.Tests[j], &v); err != nil {
				return nil, err
			}
			id := v.TcID
			if err := json.Unmarshal(answers[i].Tests[j], &v); err != nil {
				return nil, err
			}
			if v.TcID != id {
				return nil, fmt.Errorf("%s: the answer to %d is that to %d", folder, id, v.TcID)
			}
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no vectors", folder)
	}
	return all, nil
}

// acvpFile is a folder of NIST's vectors in the sources of circl.
func acvpFile(folder string, run, skipped int, fn func(a *secret.Arena, v acvpVector) error) file {
	name := "ACVP " + filepath.Base(folder)
	return file{name, run, skipped, func(t *testing.T, a *secret.Arena, c *tally) {
		all, err := readACVP(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			err := fn(a, v)
			if why, ok := err.(errSkip); ok {
				c.skip(string(why))
				continue
			}
			c.run++
			if err != nil {
				t.Errorf("tcId %d (%s): %v", v.TcID, v.set, err)
			}
		}
	}}
}

// samePublic compares the public key that core/alg makes of a seed.
func samePublic(a *secret.Arena, set string, seed, want []byte) error {
	got, err := publicOf(a, strings.ToLower(set), seed)
	if err != nil || len(want) == 0 || !bytes.Equal(got, want) {
		return fmt.Errorf("core/alg has another public key: %v", err)
	}
	return nil
}

func mldsaACVPKeyGen(a *secret.Arena, v acvpVector) error {
	return samePublic(a, v.set, v.Seed, v.PK)
}

const no512 = errSkip("ML-KEM-512 is not on the list of algorithms")

func mlkemACVPKeyGen(a *secret.Arena, v acvpVector) error {
	if v.set == "ML-KEM-512" {
		return no512
	}
	return samePublic(a, v.set, slices.Concat(v.D, v.Z), v.EK)
}

func mlkemACVPEncapDecap(_ *secret.Arena, v acvpVector) error {
	switch {
	case v.set == "ML-KEM-512":
		return no512
	case v.method != "encapsulation":
		return errSkip("takes an expanded private key, and crypto/mlkem takes seeds alone")
	}
	lib := mlkem768Lib
	if v.set == "ML-KEM-1024" {
		lib = mlkem1024Lib
	}
	tr, _ := alg.LookupTrack(lib.name)
	if _, err := tr.ParsePublic(v.EK); err != nil {
		return err
	}
	shared, ct, err := lib.encapsulate(v.EK, v.M)
	if err != nil || !bytes.Equal(shared, v.K) || !bytes.Equal(ct, v.C) {
		return fmt.Errorf("another secret or ciphertext: %v", err)
	}
	return nil
}

// NIST's vectors of signing and verifying enter the internal functions of
// FIPS 204 §6, which only the tests of circl reach. They are run here, in the
// release that the product is built with.
//
func TestCirclACVP(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const module = "github.com/cloudflare/circl/sign/mldsa/"
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run=^TestACVP$", module+"mldsa44", module+"mldsa65", module+"mldsa87")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := bytes.Count(out, []byte("\n--- PASS: TestACVP ")); n != 3 {
		t.Errorf("%d tests ran, not 3:\n%s", n, out)
	}
}

// The product and this module must be built with the same release of circl.
func TestSameReleases(t *testing.T) {
	t.Parallel()
	releases := func(dir string) string {
		cmd := exec.Command("go", "list", "-m", "-f", "{{.Path}} {{.Version}}", "github.com/cloudflare/circl", "golang.org/x/crypto")
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if ours, product := releases("."), releases("../.."); ours != product || ours == "" {
		t.Errorf("here:\n%sthe product:\n%s", ours, product)
	}
}
