package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/config"
)

func env(extra ...string) []string {
	return append([]string{"PATH=/bin", "KMS_DIR=/var/lib/ron-kms", "HOME=/root"}, extra...)
}

func TestFromEnviron(t *testing.T) {
	t.Parallel()
	c, err := config.FromEnviron(env("KMS_BIND=127.0.0.1:9446", "KMS_ALLOWED_ALGS=ed25519,hybrid", "KMS_MAX_PAYLOAD=4096",
		"KMS_PQ_VERIFY_MODE=pq_only", "KMS_AUDIT_CHECKPOINT_INTERVAL=250ms", "KMS_AMNESIA=false", "KMS_TOKEN=of the client"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Backend != "file" || c.Dir != "/var/lib/ron-kms" || !slices.Equal(c.AllowedAlgs, []string{"ed25519", "hybrid"}) ||
		c.MaxPayload != 4096 || c.PQVerifyMode != "pq_only" || time.Duration(c.AuditCheckpointInterval) != 250*time.Millisecond || c.IsAmnesia() {
		t.Errorf("%+v", c)
	}
	d, err := config.FromEnviron(env())
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Dir = d.Dir
	if a, b := *d, *want; a.ArenaSize != b.ArenaSize || a.MaxPayload != b.MaxPayload || a.PQVerifyMode != b.PQVerifyMode || a.OpTimeout != b.OpTimeout || a.Bind != "" {
		t.Errorf("without variables: %+v, want %+v", a, b)
	}
}

// What must not start, and what the answer names.,
//
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ env, names string }{
		{"KMS_BACKEND=FILE", "KMS_BACKEND"},
		{"KMS_BACKEND=file,inmem", "KMS_BACKEND"},
		{"KMS_BACKEND=pkcs11", "not in this build"},
		{"KMS_BACKEND=tpm", "not in this build"},
		{"KMS_BACKEND=cloud", "not in this build"},
		{"KMS_BACKEND=inmem", "KMS_DIR"}, // with a folder
		{"KMS_AMNESIA=true", "KMS_AMNESIA"},
		{"KMS_AMNESIA=perhaps", "Amnesia"},
		{"KMS_DIR=", "KMS_DIR"},
		{"KMS_MAX_PAYLOAD=1023", "KMS_MAX_PAYLOAD"},
		{"KMS_MAX_PAYLOAD=1048577", "KMS_MAX_PAYLOAD"},
		{"KMS_MAX_PAYLOAD=-1", "KMS_MAX_PAYLOAD"},
		{"KMS_MAX_PAYLOAD=1MiB", "MaxPayload"},
		{"KMS_ALLOWED_ALGS=ed25519,rsa-2048", "rsa-2048"},
		{"KMS_ALLOWED_ALGS=ed25519,", "KMS_ALLOWED_ALGS"},
		{"KMS_PQ_VERIFY_MODE=off", "KMS_PQ_VERIFY_MODE"},
		{"KMS_AUDIT_PERSONAL=encrypted", "KMS_AUDIT_PERSONAL"},
		{"KMS_AUDIT_PERSONAL=Sealed", "KMS_AUDIT_PERSONAL"},
		{"KMS_ARENA_SIZE=1048575", "KMS_ARENA_SIZE"},
		{"KMS_ARENA_SIZE=1073741825", "KMS_ARENA_SIZE"},
		{"KMS_AUDIT_SEGMENT_SIZE=65535", "KMS_AUDIT_SEGMENT_SIZE"},
		{"KMS_AUDIT_SEGMENT_SIZE=65537", "multiple of 512"},
		{"KMS_AUDIT_CHECKPOINT_INTERVAL=9ms", "KMS_AUDIT_CHECKPOINT_INTERVAL"},
		{"KMS_AUDIT_CHECKPOINT_INTERVAL=61s", "KMS_AUDIT_CHECKPOINT_INTERVAL"},
		{"KMS_AUDIT_CHECKPOINT_INTERVAL=5", "AuditCheckpointInterval"},
		{"KMS_OP_TIMEOUT=99ms", "KMS_OP_TIMEOUT"},
		{"KMS_OP_TIMEOUT=0", "KMS_OP_TIMEOUT"},
		{"KMS_TLS_CERT=/cert.pem", "KMS_TLS_KEY"},
		{"KMS_TLS_KEY=/key.pem", "KMS_TLS_CERT"},
		{"KMS_BIND=0.0.0.0:9446", "loopback"},
		{"KMS_BIND=:9446", "loopback"},
		{"KMS_BIND=[::]:9446", "loopback"},
		{"KMS_BIND=kms.example:9446", "loopback"},
		{"KMS_BIND=127.0.0.1", "KMS_BIND"},
		{"KMS_BIND=unix://relative", "absolute"},
		{"KMS_METRICS_BIND=10.0.0.1:9100", "KMS_METRICS_BIND"},
		{"KMS_MAX_PAYLAOD=4096", "KMS_MAX_PAYLAOD"},
		{"KMS_VERIFY_SCOPE_ENFORCE=sometimes", "VerifyScopeEnforce"},
	} {
		if got, err := config.FromEnviron(env(c.env)); err == nil {
			t.Errorf("%s was accepted: %+v", c.env, got)
		} else if !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v, which does not name %s", c.env, err, c.names)
		}
	}
	// A certificate opens the API to the network, and not the metrics.
	tls := []string{"KMS_TLS_CERT=/c", "KMS_TLS_KEY=/k"}
	open := append(tls, "KMS_BIND=0.0.0.0:9446")
	if _, err := config.FromEnviron(env(append(open, "KMS_METRICS_BIND=127.0.0.1:0")...)); err != nil {
		t.Errorf("with TLS: %v", err)
	}
	if _, err := config.FromEnviron(env(open...)); err == nil || !strings.Contains(err.Error(), "KMS_METRICS_BIND") {
		t.Errorf("metrics beside an API that is open to the network: %v", err)
	}
	if _, err := config.FromEnviron(env(append(tls, "KMS_METRICS_BIND=0.0.0.0:9100")...)); err == nil {
		t.Error("metrics without TLS on every address")
	}
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	for _, e := range [][]string{
		{"KMS_BIND=unix:///run/kms.sock"},
		{"KMS_BIND=localhost:1"},
		{"KMS_BIND=[::1]:9446"},
		{"KMS_BACKEND=inmem", "KMS_DIR="},
		{"KMS_BACKEND=inmem", "KMS_DIR=", "KMS_AMNESIA=true"},
		{"KMS_MAX_PAYLOAD=1024"},
		{"KMS_AUDIT_SEGMENT_SIZE=65536"},
	} {
		if _, err := config.FromEnviron(env(e...)); err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
	if _, err := config.FromEnviron(env("KMS_BACKEND=inmem", "KMS_DIR=", "KMS_AMNESIA=false")); err == nil {
		t.Error("inmem that remembers was accepted")
	}
}

func TestFromJSON(t *testing.T) {
	t.Parallel()
	c, err := config.FromJSON([]byte(`{"dir":"/d","op_timeout":"2s","allowed_algs":["ed25519"]}`))
	if err != nil || c.Dir != "/d" || time.Duration(c.OpTimeout) != 2*time.Second {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{
		``, `null`, `[]`, `{}`, `{"dir":"/d"} x`, `{"dir":"/d","dirr":"/e"}`, `{"dir":"/d","dir":"/e"}`, `{"Dir":"/d"}`,
		`{"dir":"/d","op_timeout":2}`, `{"dir":"/d","max_payload":"4096"}`, `{"backend":"inmem","amnesia":false}`,
	} {
		if c, err := config.FromJSON([]byte(bad)); err == nil {
			t.Errorf("%s was accepted: %+v", bad, c)
		}
	}
}

// Every field has a variable and a JSON name, in one form.
func TestVariables(t *testing.T) {
	t.Parallel()
	names := config.Variables()
	if len(names) < 10 {
		t.Fatal("variables are missing")
	}
	for i, n := range names {
		if !strings.HasPrefix(n, "KMS_") || slices.Contains(names[:i], n) {
			t.Errorf("variable %q", n)
		}
	}
}

func TestReadPassphrase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pass")
	for _, c := range []struct {
		content string
		mode    os.FileMode
		want    string // "" is an error
	}{
		{"secret", 0o600, "secret"},
		{"secret\n", 0o400, "secret"},
		{"secret\n\n", 0o600, "secret\n"},
		{" s ", 0o600, " s "},
		{"", 0o600, ""},
		{"\n", 0o600, ""},
		{"secret", 0o640, ""},
		{"secret", 0o604, ""},
	} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		cfg := config.Default()
		cfg.PassphraseFile = path
		got, err := cfg.ReadPassphrase()
		if (err != nil) != (c.want == "") || string(got) != c.want {
			t.Errorf("%q with mode %o: %q, %v; want %q", c.content, c.mode, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error repeats the passphrase: %v", err)
		}
	}
	cfg := config.Default()
	for _, p := range []string{"", path + "-none", filepath.Dir(path)} {
		cfg.PassphraseFile = p
		if _, err := cfg.ReadPassphrase(); err == nil {
			t.Errorf("passphrase from %q", p)
		}
	}
}
