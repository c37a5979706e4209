// Package coretest helps tests of everything above the engine: it makes stores,
// opens them, and mints tokens for them.
package coretest

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/config"
)

// Passphrase opens every store that this package makes.
const Passphrase = "correct horse battery staple"

// WorkFactor keeps scrypt out of the tests' time.
const WorkFactor = 10

// Config is a small durable store in a fresh folder, not made yet.
func Config(t testing.TB) *config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Dir = filepath.Join(t.TempDir(), "store")
	cfg.ArenaSize = 1 << 20
	cfg.AuditSegmentSize = 256 << 10
	return cfg
}

// Init makes the store of cfg.
func Init(t testing.TB, cfg *config.Config) *core.InitReport {
	t.Helper()
	report, err := core.Init(context.Background(), cfg, []byte(Passphrase), core.InitOptions{WorkFactor: WorkFactor})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Open opens the store of cfg with the given options and [Passphrase].
func Open(t testing.TB, cfg *config.Config, o core.Options) *core.KMS {
	t.Helper()
	o.Passphrase = func() ([]byte, error) { return []byte(Passphrase), nil }
	k, err := core.Open(context.Background(), cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// Amnesia opens an in-memory KMS.
func Amnesia(t testing.TB) *core.KMS {
	t.Helper()
	cfg := config.Default()
	cfg.Backend = config.BackendInmem
	cfg.ArenaSize = 1 << 20
	return Open(t, cfg, core.Options{})
}

// Token mints a token for a tenant that lasts an hour. Without scopes it has
// all of them. Further caveats may be given as text in extra.
func Token(t testing.TB, k *core.KMS, tenant string, scopes []string, extra ...string) string {
	t.Helper()
	return TokenFrom(t, k.TokenKeys(), k.Now().Add(time.Hour), tenant, scopes, extra...)
}

// TokenFrom mints with the given root keys.
func TokenFrom(t testing.TB, keys *core.TokenKeys, expiry time.Time, tenant string, scopes []string, extra ...string) string {
	t.Helper()
	if len(scopes) == 0 {
		scopes = capability.ScopeList()
	}
	token, err := mint.ForTenant(keys, tenant, scopes, expiry, extra...)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Session opens a session with a fresh token.
func Session(t testing.TB, k *core.KMS, tenant string, scopes ...string) *core.Session {
	t.Helper()
	s, err := k.OpenSession(Token(t, k, tenant, scopes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Do performs a verb and gives its response as R.
func Do[R any](k *core.KMS, s *core.Session, verb string, req api.Request) (*R, error) {
	v, ok := core.VerbNamed(verb)
	if !ok {
		panic("no verb " + verb)
	}
	resp, err := k.Do(context.Background(), s, v, req)
	if err != nil {
		return nil, err
	}
	return resp.(*R), nil
}

// Must is Do for calls that must succeed.
func Must[R any](t testing.TB, k *core.KMS, s *core.Session, verb string, req api.Request) *R {
	t.Helper()
	r, err := Do[R](k, s, verb, req)
	if err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	return r
}

// Create makes a key of the session's tenant and purpose "test".
func Create(t testing.TB, k *core.KMS, s *core.Session, alg string) *api.CreateResponse {
	t.Helper()
	return Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: s.Tenant(), Purpose: "test", Alg: alg,
	})
}

// Rotate makes a new version of a key.
func Rotate(t testing.TB, k *core.KMS, s *core.Session, kid string) *api.RotateResponse {
	t.Helper()
	return Must[api.RotateResponse](t, k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid})
}

// Digest is a payload_b3 made of one repeated byte.
func Digest(b byte) string {
	const hex = "0123456789abcdef"
	return strings.Repeat(string([]byte{hex[b>>4], hex[b&15]}), 32)
}

// Sign signs a digest with the key's head.
func Sign(t testing.TB, k *core.KMS, s *core.Session, kid, digest string) *api.SignResponse {
	t.Helper()
	return Must[api.SignResponse](t, k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest})
}

// Verify verifies signatures over a digest.
func Verify(t testing.TB, k *core.KMS, s *core.Session, digest string, sigs []api.Signature) *api.VerifyResponse {
	t.Helper()
	return Must[api.VerifyResponse](t, k, s, "verify", &api.VerifyRequest{PayloadB3: digest, Sigs: sigs})
}

// Destroy erases the private part of a key, or of the version that kid names.
func Destroy(t testing.TB, k *core.KMS, s *core.Session, kid string) *api.DestroyResponse {
	t.Helper()
	return Must[api.DestroyResponse](t, k, s, "destroy", &api.DestroyRequest{OpID: uuid.NewString(), KID: kid})
}

// Wrap seals a fresh data key of n bytes to a key's head.
func Wrap(t testing.TB, k *core.KMS, s *core.Session, kid string, n int) *api.WrapResponse {
	t.Helper()
	return Must[api.WrapResponse](t, k, s, "wrap", &api.WrapRequest{KID: kid, Size: n})
}

// Unwrap opens an envelope that has no associated data.
func Unwrap(t testing.TB, k *core.KMS, s *core.Session, kid, envelope string) *api.UnwrapResponse {
	t.Helper()
	return Must[api.UnwrapResponse](t, k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: envelope})
}

// Derive makes the child of a key for a context.
func Derive(t testing.TB, k *core.KMS, s *core.Session, kid, context, alg string) *api.DeriveResponse {
	t.Helper()
	return Must[api.DeriveResponse](t, k, s, "derive", &api.DeriveRequest{OpID: uuid.NewString(), KID: kid, Context: context, Alg: alg})
}

// CreateWith makes a key of the session's tenant; what of req is empty is
// filled in as [Create] does.
func CreateWith(t testing.TB, k *core.KMS, s *core.Session, req api.CreateRequest) *api.CreateResponse {
	t.Helper()
	if req.OpID == "" {
		req.OpID = uuid.NewString()
	}
	if req.Tenant == "" {
		req.Tenant = s.Tenant()
	}
	if req.Purpose == "" {
		req.Purpose = "test"
	}
	return Must[api.CreateResponse](t, k, s, "create", &req)
}

// A Clock is a wall clock that tests set. It is safe for concurrent use.
type Clock struct{ ms atomic.Int64 }

// NewClock shows t, in whole milliseconds.
func NewClock(t time.Time) *Clock {
	c := new(Clock)
	c.Set(t)
	return c
}

// Now is the time shown.
func (c *Clock) Now() time.Time { return time.UnixMilli(c.ms.Load()) }

// Set changes the time shown.
func (c *Clock) Set(t time.Time) { c.ms.Store(t.UnixMilli()) }

// Move changes the time shown by d.
func (c *Clock) Move(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// Base is a kid without its version.
func Base(kid string) string {
	base, _, _ := strings.Cut(kid, "#")
	return base
}

// Get describes a key.
func Get(t testing.TB, k *core.KMS, s *core.Session, kid string) *api.GetResponse {
	t.Helper()
	return Must[api.GetResponse](t, k, s, "get", &api.GetRequest{KID: kid})
}

// Code is the code of an error, "" for nil.
func Code(err error) api.Code {
	if err == nil {
		return ""
	}
	return api.AsError(err).Code
}

// An Entry is a record of the audit log with its index.
type Entry struct {
	Index uint64
	*audit.Record
}

// Audit verifies the audit log of a store, which may be open, as an auditor
// would, with the public key that init printed; and reads all of it.
func Audit(t testing.TB, cfg *config.Config, verifierKey string) []Entry {
	t.Helper()
	verifier, err := notekey.ParseSet(verifierKey)
	if err != nil {
		t.Fatal(err)
	}
	var all []Entry
	_, err = audit.Verify(context.Background(), filepath.Join(cfg.Dir, "audit"), audit.VerifyOptions{
		Keys:     verifier,
		OnRecord: func(index uint64, r *audit.Record) error { all = append(all, Entry{index, r}); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Copy copies the folder of a store, open or not: what a process that is
// killed at this moment would leave.
func Copy(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, name), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
