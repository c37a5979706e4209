// Bench measures ron-kms on this machine and prints a table; -json writes the
// same as an array of objects. A figure alone says little about a program on a
// shared machine: each stands beside one measured in the same run, and the
// ratio between the two is what carries over.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/config"
)

// A Result is one line of the table. Value is the mean for times and the rate
// for rates; the percentiles are of single operations, in Unit.
type Result struct {
	Name       string  `json:"name"`
	Value      float64 `json:"value"`
	Unit       string  `json:"unit"`
	P50        float64 `json:"p50"`
	P95        float64 `json:"p95"`
	P99        float64 `json:"p99"`
	Against    string  `json:"against,omitempty"` // name of the result that Ratio compares with
	Ratio      float64 `json:"ratio,omitempty"`   // of the p95s
	RatioP50   float64 `json:"ratio_p50,omitempty"`
	Conditions string  `json:"conditions"`
}

// A figure is one line of the table to come: what it is compared with, if
// anything, and under what conditions it was measured.
type figure struct{ against, conditions string }

// figures is everything that can be measured, by name.
func figures() map[string]figure {
	all := map[string]figure{
		"disk.fdatasync":            {"", "512 bytes over written blocks, one at a time, same disk"},
		"capi.sign.ed25519.durable": {"disk.fdatasync", "C ABI, file store, audit record durable, one thread"},
		"capi.sign.hybrid.durable":  {"disk.fdatasync", "C ABI, file store, audit record durable, one thread"},
		"capi.verify.hybrid":        {"", "C ABI, both tracks, audited asynchronously"},
	}
	maps.Copy(all, auditFigures())
	for _, p := range pairs() {
		primitive, engine := bareConditions[p.op], "Go engine, in-memory store, audited, token cleared"
		switch p.op {
		case "verify":
			engine += "; the record is not waited for"
		case "derive":
			engine += "; another child each time, intent and result on record"
		}
		all[p.primitiveName()] = figure{"", primitive}
		all[p.engineName()] = figure{p.primitiveName(), engine}
	}
	return all
}

var bareConditions = map[string]string{
	"sign":   "the engine's library, expanded key on the heap, 128-byte message, ML-DSA hedged",
	"verify": "the engine's library, parsed key, 128-byte message",
	"wrap":   "the engine's library, parsed key, 32-byte data key, no associated data",
	"unwrap": "the engine's library, parsed key, 32-byte data key, no associated data",
	"derive": "HKDF-SHA256 and the Ed25519 key pair of its output",
}

func main() {
	only := flag.String("only", "", "only results whose name begins with this, and what they are compared with")
	out := flag.String("json", "build/bench.json", "file to write the results to")
	rounds := flag.Int("rounds", 100, "rounds of ten operations each")
	flag.Parse()
	if err := run(*only, *out, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(only, out string, rounds int) error {
	all := figures()
	needed := make(map[string]bool)
	for name, f := range all {
		if strings.HasPrefix(name, only) {
			needed[name] = true
			if f.against != "" {
				needed[f.against] = true
			}
		}
	}
	if len(needed) == 0 {
		return fmt.Errorf("nothing is named %s…", only)
	}
	wanted := func(name string) bool { return needed[name] }
	samples := make(map[string][]time.Duration)
	if err := measureEngine(samples, wanted, rounds*10); err != nil {
		return err
	}
	rates := make(map[string]float64)
	if err := measureAudit(samples, rates, wanted); err != nil {
		return err
	}
	var outside []string
	for name := range needed {
		if strings.HasPrefix(name, "disk.") || strings.HasPrefix(name, "capi.") {
			outside = append(outside, name)
		}
	}
	if len(outside) > 0 {
		slices.Sort(outside)
		if err := capi(samples, rounds, outside); err != nil {
			return err
		}
	}
	results := summarize(samples, rates, all, wanted)
	print(results)
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(data, '\n'), 0o644)
}

func summarize(samples map[string][]time.Duration, rates map[string]float64, all map[string]figure, wanted func(string) bool) []Result {
	byName := make(map[string]Result)
	for name, s := range samples {
		if !wanted(name) {
			continue
		}
		slices.Sort(s)
		var sum time.Duration
		for _, d := range s {
			sum += d
		}
		us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
		at := func(q float64) float64 { return us(s[int(q*float64(len(s)-1))]) }
		byName[name] = Result{
			Name: name, Unit: "us", Value: us(sum / time.Duration(len(s))),
			P50: at(0.50), P95: at(0.95), P99: at(0.99),
			Conditions: fmt.Sprintf("%s; n=%d", all[name].conditions, len(s)),
		}
		if rate, ok := rates[name]; ok {
			r := byName[name]
			r.Value, r.Unit = rate, "records/s"
			byName[name] = r
		}
	}
	var results []Result
	for name, r := range byName {
		if base, ok := byName[all[name].against]; ok {
			r.Against, r.Ratio, r.RatioP50 = base.Name, r.P95/base.P95, r.P50/base.P50
		}
		results = append(results, r)
	}
	slices.SortFunc(results, func(a, b Result) int { return strings.Compare(a.Name, b.Name) })
	return results
}

func print(results []Result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "name\tvalue\tunit\tp50\tp95\tp99\tp50 ratio\tp95 ratio\tagainst\t")
	for _, r := range results {
		ratios := "\t"
		if r.Against != "" {
			ratios = fmt.Sprintf("%.2f\t%.2f", r.RatioP50, r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%.1f\t%s\t%.1f\t%.1f\t%.1f\t%s\t%s\t\n", r.Name, r.Value, r.Unit, r.P50, r.P95, r.P99, ratios, r.Against)
	}
	w.Flush()
}

// mintAll makes a token that allows everything to the tenant of the benchmark.
func mintAll(keys *core.TokenKeys) (string, error) {
	return mint.ForTenant(keys, "bench", capability.ScopeList(), time.Now().Add(time.Hour))
}

// capi makes a store, builds the C program against the library and has it
// measure what is named.
func capi(samples map[string][]time.Duration, rounds int, names []string) (err error) {
	// In the build folder, so that the store is on the disk people use and not
	// on a temporary one in memory.
	dir, err := os.MkdirTemp("build", "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	passphrase := []byte("a benchmark has no secrets")
	files := map[string]string{"passphrase": string(passphrase)}
	cfg := config.Default()
	cfg.Dir = filepath.Join(dir, "store")
	if _, err := core.Init(context.Background(), cfg, passphrase, core.InitOptions{WorkFactor: 10}); err != nil {
		return err
	}
	passphrase = []byte(files["passphrase"])
	keys, err := core.OpenTokenKeys(cfg.Dir, passphrase)
	if err != nil {
		return err
	}
	defer keys.Close()
	if files["token"], err = mintAll(keys); err != nil {
		return err
	}
	settings, err := json.Marshal(map[string]string{
		"backend": "file", "dir": cfg.Dir, "passphrase_file": filepath.Join(dir, "passphrase"),
	})
	if err != nil {
		return err
	}
	files["config.json"] = string(settings)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	library, err := filepath.Abs("build")
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "capi")
	build := exec.Command("gcc", "-std=c99", "-O2", "-Iinclude", "tests/bench/c/capi.c", "-o", program,
		"-L"+library, "-lronkms", "-Wl,-rpath,"+library)
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("gcc: %w", err)
	}
	measure := exec.Command(program, append([]string{
		strconv.Itoa(rounds), filepath.Join(dir, "config.json"), filepath.Join(dir, "token"), filepath.Join(dir, "scratch"),
	}, names...)...)
	measure.Stderr = os.Stderr
	stdout, err := measure.StdoutPipe()
	if err != nil {
		return err
	}
	if err := measure.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		ns, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return errors.Join(err, measure.Process.Kill())
		}
		samples[name] = append(samples[name], time.Duration(ns))
	}
	return errors.Join(lines.Err(), measure.Wait())
}
