// Package config defines the settings of ron-kms: one struct whose comments
// are the manual, read from KMS_* variables by the daemon or from JSON by the
// C ABI, and checked as a whole before anything starts.
package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/go-json-experiment/json"

	"github.com/rustyonions/ron-kms/core/alg"
)

// Backends that this build knows.
const (
	BackendInmem = "inmem"
	BackendFile  = "file"
)

// Config is every setting. The zero value is not valid: start from [Default].
type Config struct {
	// Backend says where keys live: "file" (sealed at rest in Dir) or "inmem"
	// (nothing is ever written; all keys are gone when the process ends).
	Backend string `env:"KMS_BACKEND" json:"backend,omitempty"`

	// Amnesia states that nothing may be written. It must be true with "inmem"
	// and false with "file"; a conflict refuses to start, so that the mode is
	// never a surprise. Unset, it follows the backend.
	Amnesia *bool `env:"KMS_AMNESIA" json:"amnesia,omitempty"`

	// Dir is the store's folder, made by `ron-kms init`. Opening never creates.
	Dir string `env:"KMS_DIR" json:"dir,omitempty"`

	// PassphraseFile holds the passphrase that seals the store's root key; one
	// trailing newline is ignored. It must not be readable by group or others.
	// Unset, the CLI asks on the terminal and the library refuses.
	PassphraseFile string `env:"KMS_PASSPHRASE_FILE" json:"passphrase_file,omitempty"`

	// Bind is where the HTTP control plane listens: host:port, or
	// unix:///path for a socket of mode 0600. The daemon's default is
	// 127.0.0.1:9446; the library listens only when told to. An address that
	// is not loopback needs TLS.
	Bind string `env:"KMS_BIND" json:"bind,omitempty"`

	// MetricsBind moves /metrics to a listener of its own; empty serves it
	// beside the API. It is required where Bind is not loopback, because
	// metrics name tenants and need no token.
	MetricsBind string `env:"KMS_METRICS_BIND" json:"metrics_bind,omitempty"`

	// TLSCert and TLSKey are PEM files; both or neither. TLS 1.3 only.
	TLSCert string `env:"KMS_TLS_CERT" json:"tls_cert,omitempty"`
	TLSKey  string `env:"KMS_TLS_KEY" json:"tls_key,omitempty"`

	// MaxPayload bounds a request body, in bytes: 1024 to 1048576 (default).
	MaxPayload int `env:"KMS_MAX_PAYLOAD" json:"max_payload,omitempty"`

	// AllowedAlgs narrows the built-in allow-list; empty allows all of it.
	// A key of an algorithm not allowed neither signs nor verifies.
	AllowedAlgs []string `env:"KMS_ALLOWED_ALGS" json:"allowed_algs,omitempty"`

	// PQVerifyMode is the least that a bundle must satisfy: "or" (default: any
	// track), "and" (classical and post-quantum), "pq_only". A key's own policy
	// and a request may only tighten it; a hybrid key demands "and" by itself
	// unless it was created with another mode.
	PQVerifyMode string `env:"KMS_PQ_VERIFY_MODE" json:"pq_verify_mode,omitempty"`

	// PQProduceHybrid gives each new version of a classical signing key a
	// post-quantum companion track. Default false.
	PQProduceHybrid bool `env:"KMS_PQ_PRODUCE_HYBRID" json:"pq_produce_hybrid,omitempty"`

	// PQRolloutPercent is how many of the tenants and purposes PQVerifyMode and
	// PQProduceHybrid hold for, 0 to 100 (default); the others are treated as
	// in phase 0. Raising it never takes one out. See docs/PQ_MIGRATION.md.
	PQRolloutPercent int `env:"KMS_PQ_ROLLOUT_PERCENT" json:"pq_rollout_percent,omitzero"`

	// PQLegacyGraceUntil is an RFC 3339 time until which versions that have no
	// post-quantum track are still verified by what they have. Unset: not at
	// all.
	PQLegacyGraceUntil Time `env:"KMS_PQ_LEGACY_GRACE_UNTIL" json:"pq_legacy_grace_until,omitzero"`

	// TimeSkewToleranceMS widens every validity window at both ends, and is how
	// far the clock may be behind the audit log, in milliseconds: 0 to 60000,
	// default 2000.
	TimeSkewToleranceMS int `env:"KMS_TIME_SKEW_TOLERANCE_MS" json:"time_skew_tolerance_ms,omitzero"`

	// RNGReseedIntervalOps is how many draws the random generator makes before
	// it takes fresh entropy: 1 to 4294967296, default 100000.
	RNGReseedIntervalOps uint64 `env:"KMS_RNG_RESEED_INTERVAL_OPS" json:"rng_reseed_interval_ops,omitempty"`

	// ArenaSize is the locked memory for secrets, in bytes: 1 MiB to 1 GiB,
	// default 4 MiB. An expanded ML-DSA-65 key takes 64 KiB, others under 128
	// bytes; expanded keys beyond that are recomputed on use.
	ArenaSize int `env:"KMS_ARENA_SIZE" json:"arena_size,omitempty"`

	// AuditSegmentSize is the preallocated size of one audit segment, in
	// bytes: a multiple of 512 from 64 KiB to 64 MiB, default 16 MiB. It is
	// fixed by init.
	AuditSegmentSize int64 `env:"KMS_AUDIT_SEGMENT_SIZE" json:"audit_segment_size,omitempty"`

	// AuditCheckpointInterval is how long a record may stay without a signed
	// checkpoint: 10 ms to 1 min, default 1 s.
	AuditCheckpointInterval Duration `env:"KMS_AUDIT_CHECKPOINT_INTERVAL" json:"audit_checkpoint_interval,omitempty"`

	// AuditRingSegments is how many audit segments there may be: 5 to 64,
	// default 8. They hold what is not packed yet, and so bound what opening
	// reads.
	AuditRingSegments int `env:"KMS_AUDIT_RING_SEGMENTS" json:"audit_ring_segments,omitempty"`

	// AuditVerify is which verdicts of verify the audit log records: "full"
	// (each, the default), "sampled" (one in 64, which stands for 64) or
	// "aggregate" (their number per tenant, key and result, every 10 s).
	// Refusals, errors and other operations are always recorded, each.
	AuditVerify string `env:"KMS_AUDIT_VERIFY" json:"audit_verify,omitempty"`

	// AuditPersonal is how the audit log keeps what can name people, the actor
	// and the detail of a record: "clear" (the default) or "sealed" (encrypted
	// with a key of the tenant, which `ron-kms audit erase` destroys). What is
	// in the log already stays as it is. See docs/runbooks/privacy.md.
	AuditPersonal string `env:"KMS_AUDIT_PERSONAL" json:"audit_personal,omitempty"`

	// AuditAnchorDir is a folder on another disk, in which the audit log
	// remembers how long it is. Empty means none: the log cannot notice that
	// its whole folder was put back to an earlier state.
	AuditAnchorDir string `env:"KMS_AUDIT_ANCHOR_DIR" json:"audit_anchor_dir,omitempty"`

	// AuditAnchorMode is when that folder is written: "async" (right behind
	// each commit, the default), "strict" (before a result is released),
	// "mirror" (at the same time as the log, with all that is written to it, so
	// that it can give back what the log's disk loses) or "checkpoint" (with each
	// signed checkpoint).
	AuditAnchorMode string `env:"KMS_AUDIT_ANCHOR_MODE" json:"audit_anchor_mode,omitempty"`

	// AuditAnchorTPM is a TPM 2.0 in whose NV memory the audit log remembers
	// its length with each checkpoint: "/dev/tpmrm0", "unix:PATH" or
	// "tcp:HOST:PORT". Empty means none.
	AuditAnchorTPM string `env:"KMS_AUDIT_ANCHOR_TPM" json:"audit_anchor_tpm,omitempty"`

	// AuditWitnesses are witnesses (C2SP tlog-witness) that see each signed
	// checkpoint, as VKEY@URL separated by commas. A witness runs with
	// ron-kms witness, on another machine.
	AuditWitnesses []string `env:"KMS_AUDIT_WITNESSES" json:"audit_witnesses,omitempty"`

	// AuditWitnessRequired refuses to open the store while a witness does not
	// answer. What a witness contradicts is refused in any case.
	AuditWitnessRequired bool `env:"KMS_AUDIT_WITNESS_REQUIRED" json:"audit_witness_required,omitempty"`

	// AuditMinIndex is the least number of records that the audit log must
	// have to be opened: what an operator remembers of it, as a last resort.
	AuditMinIndex uint64 `env:"KMS_AUDIT_MIN_INDEX" json:"audit_min_index,omitempty"`

	// PolicyFile is a bundle of ron-policy (docs/spec/policy.md). It is read again
	// within 2 s when it changes. Empty means none.
	PolicyFile string `env:"KMS_POLICY_FILE" json:"policy_file,omitempty"`

	// PolicyURL is a policy service that speaks the data API of Open Policy Agent:
	// https://HOST, http:// with a loopback address, or unix:///PATH. Empty means
	// none. While it does not answer, nothing is signed; verify goes on.
	PolicyURL string `env:"KMS_POLICY_URL" json:"policy_url,omitempty"`

	// PolicyPath names the document with the decision, default ronkms/decision.
	PolicyPath string `env:"KMS_POLICY_PATH" json:"policy_path,omitempty"`

	// PolicyTokenFile holds the bearer token for the policy service. Empty means
	// none.
	PolicyTokenFile string `env:"KMS_POLICY_TOKEN_FILE" json:"policy_token_file,omitempty"`

	// LimitsFile has rates, quotas and weights of tenants (docs/spec/limits.md). It
	// is read again within 2 s when it changes. Empty means the defaults.
	LimitsFile string `env:"KMS_LIMITS_FILE" json:"limits_file,omitempty"`

	// RonAuthKeysFile has keys of issuers of ron-auth v1 tokens
	// (docs/spec/token.md), mode 0600. Empty accepts no such tokens.
	RonAuthKeysFile string `env:"KMS_RONAUTH_KEYS_FILE" json:"ronauth_keys_file,omitempty"`

	// Audience is the name of this server that aud caveats of tokens must give.
	// Empty refuses every token that has one.
	Audience string `env:"KMS_AUDIENCE" json:"audience,omitempty"`

	// OpTimeout bounds one operation: 100 ms to 5 min, default 10 s.
	OpTimeout Duration `env:"KMS_OP_TIMEOUT" json:"op_timeout,omitempty"`

	// VerifyScopeEnforce demands kms:verify for verify; otherwise kms:read
	// suffices too.
	VerifyScopeEnforce bool `env:"KMS_VERIFY_SCOPE_ENFORCE" json:"verify_scope_enforce,omitempty"`

	// ScopeStrict demands the one scope that is named after what a verb does:
	// kms:create for create, where otherwise kms:rotate suffices too, and
	// kms:verify for verify.
	ScopeStrict bool `env:"KMS_SCOPE_STRICT" json:"scope_strict,omitempty"`
}

// Values of AuditVerify.
const (
	AuditVerifyFull      = "full"
	AuditVerifySampled   = "sampled"
	AuditVerifyAggregate = "aggregate"
)

// Values of AuditPersonal.
const (
	AuditPersonalClear  = "clear"
	AuditPersonalSealed = "sealed"
)

// clientVariables are read by the command line only.
var clientVariables = []string{"KMS_ENDPOINT", "KMS_TOKEN_FILE", "KMS_TOKEN", "KMS_CA"}

// A Duration is a time.Duration written as "1s" or "250ms".
type Duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// A Time is a time.Time written as RFC 3339; empty is the zero time.
type Time struct{ time.Time }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (t *Time) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*t = Time{}
		return nil
	}
	v, err := time.Parse(time.RFC3339, string(b))
	*t = Time{v}
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (t Time) MarshalText() ([]byte, error) {
	if t.IsZero() {
		return nil, nil
	}
	return []byte(t.UTC().Format(time.RFC3339)), nil
}

// Default is the daemon's configuration before any variable is read, without a
// listener.
func Default() *Config {
	return &Config{
		Backend:                 BackendFile,
		MaxPayload:              1 << 20,
		PQVerifyMode:            alg.ModeOr.String(),
		PQRolloutPercent:        100,
		TimeSkewToleranceMS:     2000,
		RNGReseedIntervalOps:    100_000,
		ArenaSize:               4 << 20,
		AuditSegmentSize:        16 << 20,
		AuditCheckpointInterval: Duration(time.Second),
		AuditRingSegments:       8,
		AuditVerify:             AuditVerifyFull,
		AuditPersonal:           AuditPersonalClear,
		AuditAnchorMode:         "async",
		PolicyPath:              "ronkms/decision",
		OpTimeout:               Duration(10 * time.Second),
	}
}

// FromEnviron reads the KMS_* variables of environ (as os.Environ gives them)
// over the defaults. An unknown KMS_* variable is an error: a misspelt limit
// must not be silently without effect.
func FromEnviron(environ []string) (*Config, error) {
	vars := make(map[string]string)
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "KMS_") {
			vars[k] = v
		}
	}
	known := Variables()
	for k := range vars {
		if !slices.Contains(known, k) && !slices.Contains(clientVariables, k) {
			return nil, fmt.Errorf("unknown variable %s; known are %s", k, strings.Join(known, ", "))
		}
	}
	c := Default()
	if err := env.ParseWithOptions(c, env.Options{Environment: vars}); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	return c, c.Validate()
}

// FromJSON reads a JSON object over the defaults, strictly.
func FromJSON(data []byte) (*Config, error) {
	c := Default()
	if err := json.Unmarshal(data, c, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, c.Validate()
}

// Variables are the names of all KMS_* variables of a server.
func Variables() []string {
	t := reflect.TypeFor[Config]()
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("env")
	}
	return names
}

// Validate checks each setting and their agreement.
func (c *Config) Validate() error {
	switch c.Backend {
	case BackendInmem:
		if c.Amnesia != nil && !*c.Amnesia {
			return errors.New("KMS_BACKEND=inmem forgets everything when it ends; KMS_AMNESIA=false contradicts it")
		}
		if c.Dir != "" {
			return errors.New("KMS_BACKEND=inmem writes nothing; leave KMS_DIR unset")
		}
	case BackendFile:
		if c.Amnesia != nil && *c.Amnesia {
			return errors.New("KMS_BACKEND=file writes to disk; KMS_AMNESIA=true contradicts it")
		}
		if c.Dir == "" {
			return errors.New("KMS_DIR is not set: name the store's folder (make one with `ron-kms init`)")
		}
	case "pkcs11", "tpm", "cloud":
		return fmt.Errorf("KMS_BACKEND=%s is not in this build; use file or inmem", c.Backend)
	default:
		return errors.New("KMS_BACKEND must be file or inmem")
	}
	if _, err := alg.ParseMode(c.PQVerifyMode); err != nil {
		return errors.New("KMS_PQ_VERIFY_MODE must be or, and, or pq_only")
	}
	for _, a := range c.AllowedAlgs {
		if _, ok := alg.Lookup(a); !ok {
			return fmt.Errorf("KMS_ALLOWED_ALGS names %q, which is not on the allow-list", a)
		}
	}
	if err := c.validateCompanions(); err != nil {
		return err
	}
	type bound struct {
		name         string
		v, low, high int64
	}
	for _, b := range []bound{
		{"KMS_MAX_PAYLOAD", int64(c.MaxPayload), 1 << 10, 1 << 20},
		{"KMS_PQ_ROLLOUT_PERCENT", int64(c.PQRolloutPercent), 0, 100},
		{"KMS_TIME_SKEW_TOLERANCE_MS", int64(c.TimeSkewToleranceMS), 0, 60_000},
		{"KMS_RNG_RESEED_INTERVAL_OPS", int64(min(c.RNGReseedIntervalOps, 1<<33)), 1, 1 << 32},
		{"KMS_ARENA_SIZE", int64(c.ArenaSize), 1 << 20, 1 << 30},
		{"KMS_AUDIT_SEGMENT_SIZE", c.AuditSegmentSize, 64 << 10, 64 << 20},
		{"KMS_AUDIT_RING_SEGMENTS", int64(c.AuditRingSegments), 5, 64},
		{"KMS_AUDIT_CHECKPOINT_INTERVAL (ms)", time.Duration(c.AuditCheckpointInterval).Milliseconds(), 10, 60_000},
		{"KMS_OP_TIMEOUT (ms)", time.Duration(c.OpTimeout).Milliseconds(), 100, 300_000},
	} {
		if b.v < b.low || b.v > b.high {
			return fmt.Errorf("%s must be %d to %d", b.name, b.low, b.high)
		}
	}
	if !slices.Contains([]string{AuditVerifyFull, AuditVerifySampled, AuditVerifyAggregate}, c.AuditVerify) {
		return errors.New("KMS_AUDIT_VERIFY must be full, sampled or aggregate")
	}
	if c.AuditPersonal != AuditPersonalClear && c.AuditPersonal != AuditPersonalSealed {
		return errors.New("KMS_AUDIT_PERSONAL must be clear or sealed")
	}
	if !slices.Contains([]string{"async", "strict", "mirror", "checkpoint"}, c.AuditAnchorMode) {
		return errors.New("KMS_AUDIT_ANCHOR_MODE must be async, strict, mirror or checkpoint")
	}
	if c.IsAmnesia() && (c.AuditAnchorDir != "" || c.AuditAnchorTPM != "" || c.AuditMinIndex != 0) {
		return errors.New("an in-memory store cannot have an audit anchor: it begins anew each time")
	}
	for _, w := range c.AuditWitnesses {
		if key, url, ok := strings.Cut(w, "@"); !ok || key == "" || url == "" {
			return errors.New("KMS_AUDIT_WITNESSES must be VKEY@URL, separated by commas")
		}
	}
	if c.AuditSegmentSize%512 != 0 {
		return errors.New("KMS_AUDIT_SEGMENT_SIZE must be a multiple of 512")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("KMS_TLS_CERT and KMS_TLS_KEY go together")
	}
	for name, addr := range map[string]string{"KMS_BIND": c.Bind, "KMS_METRICS_BIND": c.MetricsBind} {
		if err := validateBind(name, addr, c.TLSCert != "" && name == "KMS_BIND"); err != nil {
			return err
		}
	}
	host, _, err := net.SplitHostPort(c.Bind)
	if err == nil && !strings.HasPrefix(c.Bind, "unix://") && !isLoopback(host) && c.MetricsBind == "" {
		return errors.New("KMS_BIND is open to the network and /metrics names tenants: set KMS_METRICS_BIND to a loopback address")
	}
	return nil
}

// validateCompanions refuses to produce hybrid signatures whose suite is not
// allowed.
func (c *Config) validateCompanions() error {
	if !c.PQProduceHybrid || len(c.AllowedAlgs) == 0 {
		return nil
	}
	allowed := make(map[string]bool)
	for _, name := range c.AllowedAlgs {
		a, _ := alg.Lookup(name)
		allowed[a.Name()] = true
	}
	if allowed["ed25519"] && !allowed["ed25519+ml-dsa-65"] {
		return errors.New("KMS_PQ_PRODUCE_HYBRID makes ed25519 keys hybrid, and KMS_ALLOWED_ALGS lacks ed25519+ml-dsa-65")
	}
	return nil
}

func validateBind(name, addr string, tls bool) error {
	if addr == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s: a socket is unix:///absolute/path", name)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s must be host:port or unix:///path", name)
	}
	if !tls && !isLoopback(host) {
		return fmt.Errorf("%s: %s is not loopback; set KMS_TLS_CERT and KMS_TLS_KEY, or bind 127.0.0.1", name, addr)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// IsAmnesia reports whether nothing may be written.
func (c *Config) IsAmnesia() bool { return c.Backend == BackendInmem }

// ReadPassphrase reads PassphraseFile: the bytes without one trailing newline,
// refused when empty or when others may read the file. The caller wipes it.
func (c *Config) ReadPassphrase() ([]byte, error) {
	if c.PassphraseFile == "" {
		return nil, errors.New("no passphrase: set KMS_PASSPHRASE_FILE to a file of mode 0600")
	}
	st, err := os.Stat(c.PassphraseFile)
	if err != nil {
		return nil, fmt.Errorf("passphrase file: %w", err)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return nil, errors.New("passphrase file is readable by others; chmod 600 it")
	}
	b, err := os.ReadFile(c.PassphraseFile)
	if err != nil {
		return nil, fmt.Errorf("passphrase file: %w", err)
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if len(b) == 0 {
		return nil, errors.New("passphrase file is empty")
	}
	return b, nil
}
