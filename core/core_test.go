package core_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(diskFullVariable); dir != "" {
		os.Exit(fullDisk(dir))
	}
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue && os.Getenv("RONKMS_SOAK") != "1" {
		f.Value.Set("12") // each makes and reopens a store on disk
	}
	goleak.VerifyTestMain(m)
}

// store makes a durable store and opens it.
func store(t *testing.T) (*config.Config, *core.InitReport, *core.KMS) {
	t.Helper()
	cfg := Config(t)
	report := Init(t, cfg)
	return cfg, report, Open(t, cfg, core.Options{})
}

// reopen closes a KMS and opens its store again, in good order.
func reopen(t *testing.T, k *core.KMS) *core.KMS {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = Open(t, k.Config(), core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Fatalf("not ready after reopening: %+v", r)
	}
	return k
}

// files reads a folder: path to contents.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// metric reads one sample, named as it is written in the text format.
func metric(t *testing.T, k *core.KMS, name string, labels ...string) float64 {
	t.Helper()
	families, err := k.Metrics().Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.Metric {
			have := ""
			for _, l := range m.Label {
				have += "," + l.GetName() + "=" + l.GetValue() + ","
			}
			for _, l := range labels {
				if !strings.Contains(have, ","+l+",") {
					continue next
				}
			}
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum
}
