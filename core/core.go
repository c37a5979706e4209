// Package core is the engine of ron-kms: it opens a store, verifies that the
// store and its audit log belong together, and performs every operation of
// every face through one function, [KMS.Do].
//
//	kms, err := core.Open(ctx, cfg, core.Options{})
//	session, err := kms.OpenSession(token)
//	out, err := kms.Call(ctx, session, "sign", body)
//
// A store is made by [Init] and never by opening.
package core

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/backends/inmem"
	"github.com/rustyonions/ron-kms/core/admit"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/metrics"
	"github.com/rustyonions/ron-kms/core/policy"
	"github.com/rustyonions/ron-kms/core/secret"
	"github.com/rustyonions/ron-kms/core/trustedtime"
)

// noiseInterval is how often refusals of unknown callers are summed up in the
// audit log.
const noiseInterval = 10 * time.Second

// Options are what a program gives that is not configuration.
type Options struct {
	// Passphrase unseals the store. Nil reads cfg.PassphraseFile. The engine
	// wipes the bytes.
	Passphrase func() ([]byte, error)
	// Logger takes what an operator should see. Nil discards.
	Logger *slog.Logger
	// Clock is the wall clock. Nil is time.Now.
	Clock func() time.Time
}

// A KMS is an open store. It is safe for concurrent use.
type KMS struct {
	cfg        *config.Config
	policy     *policy.Engine
	policyFile *policy.File // nil if there is none
	time       *trustedtime.Source
	tolerance  time.Duration // of validity windows, and of the clock against the log
	opTimeout  time.Duration
	clock      func() time.Time
	log        *slog.Logger
	metrics    *metrics.Metrics

	vault    *vault
	keys     *keyIndex
	gone     map[string]bool // ids of derived keys that were destroyed and lost; never changed after the start
	tokens   *TokenKeys
	verifier capability.TokenVerifier
	audit    *audit.Log // nil if its integrity check failed
	signer   *attestation
	personal *tenantKeys
	verdicts *verdicts
	allowed  map[string]bool // nil allows all
	limits   *admit.Controller
	costs    admit.Costs

	throttledMu sync.Mutex
	throttled   map[string]uint64 // refusals under load by tenant, not yet summed up

	// lane admits one mutation at a time: it is held across the audit commit
	// and the store commit, so it is a channel that a caller can stop waiting
	// for, not a mutex.
	lane chan struct{}

	failure atomic.Pointer[api.Error] // why keys must not be used; nil if healthy
	noise   atomic.Uint64             // refusals of unknown callers, not yet summed up
	closed  atomic.Bool
	calls   sync.RWMutex // read-held by running calls; Close takes it
	stop    chan struct{}
	done    sync.WaitGroup
	secrets []*secret.Bytes // destroyed by Close
}

// Open opens the store that cfg names, or an empty one in memory. It proves
// that the audit log continues what is signed, anchored and witnessed, and that
// store and log tell the same history. If they do
// not, Open still succeeds: the KMS verifies signatures and refuses everything
// else; [KMS.Ready] says why.
func Open(ctx context.Context, cfg *config.Config, o Options) (*KMS, error) {
	if err := cfg.Validate(); err != nil {
		return nil, api.WrapError(api.ReasonConfig, "the configuration is not valid", err)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := selfTest(); err != nil {
		return nil, api.WrapError(api.ReasonInternal, "a cryptographic self-test failed; nothing is opened", err)
	}
	k := &KMS{
		cfg: cfg, tolerance: time.Duration(cfg.TimeSkewToleranceMS) * time.Millisecond,
		time:      trustedtime.New(trustedtime.Options{Clock: clockFunc(o.Clock)}),
		opTimeout: time.Duration(cfg.OpTimeout), clock: o.Clock, log: o.Logger,
		verdicts: newVerdicts(cfg.AuditVerify),
		metrics:  metrics.New(), costs: admit.DefaultCosts(), throttled: make(map[string]uint64), keys: newKeyIndex(), lane: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if err := k.openLimits(); err != nil {
		return nil, api.WrapError(api.ReasonConfig, "the limits are not valid", err)
	}
	if err := k.openPolicy(o.Clock); err != nil {
		return nil, api.WrapError(api.ReasonConfig, "the policy is not valid", err)
	}
	if len(cfg.AllowedAlgs) > 0 {
		k.allowed = make(map[string]bool)
		for _, name := range cfg.AllowedAlgs {
			a, _ := alg.Lookup(name) // Validate has checked it
			k.allowed[a.Name()] = true
		}
	}
	if err := k.start(ctx, o); err != nil {
		k.release()
		return nil, openError(err)
	}
	k.done.Go(k.sumUpNoise)
	k.done.Go(k.watch)
	return k, nil
}

// selfTest runs the known answers of every algorithm once a process.
var selfTest = sync.OnceValue(alg.SelfTest)

// clockFunc is a clock that is a function.
type clockFunc func() time.Time

// Now implements [trustedtime.Clock].
func (f clockFunc) Now() time.Time { return f() }

func (k *KMS) start(ctx context.Context, o Options) error {
	backend, err := openBackend(k.cfg, o)
	if err != nil {
		return err
	}
	if k.vault, err = newVault(backend); err != nil {
		return errors.Join(err, backend.Close())
	}
	k.personal = newTenantKeys(k.vault)
	if k.cfg.IsAmnesia() {
		if err := bootstrap(ctx, k.vault); err != nil {
			return err
		}
		if k.tokens, err = amnesiaTokenKeys(backend.Arena()); err != nil {
			return err
		}
	} else {
		seal, err := backend.StoreKey(labelTokens, 32)
		if err != nil {
			return err
		}
		defer seal.Destroy()
		if k.tokens, err = loadTokenKeys(k.cfg.Dir, seal, backend.Arena()); err != nil {
			return err
		}
	}
	if k.verifier, err = k.tokenVerifier(backend.Arena(), o.Clock); err != nil {
		return api.WrapError(api.ReasonConfig, "the keys of other issuers of tokens are not valid", err)
	}

	found, err := k.vault.load(ctx)
	if err != nil {
		return err
	}
	k.gone = found.gone
	for _, damage := range found.damaged {
		k.tampered(damage)
	}
	for kid, r := range found.keys {
		parsed, err := newKey(kid, r, k.clock(), nil)
		if api.HasReason(err, api.ReasonUnsupported) {
			k.log.Warn("a stored key is of an algorithm that this build does not have; it cannot be used", "alg", kid.Alg)
			continue
		}
		if err != nil {
			return err
		}
		k.publish(parsed)
	}
	return k.openAudit(ctx, found)
}

func openBackend(cfg *config.Config, o Options) (backends.Backend, error) {
	if cfg.IsAmnesia() {
		return inmem.Open(cfg.ArenaSize, secret.Options{ReseedInterval: cfg.RNGReseedIntervalOps})
	}
	read := o.Passphrase
	if read == nil {
		read = cfg.ReadPassphrase
	}
	passphrase, err := read()
	if err != nil {
		return nil, api.WrapError(api.ReasonPassphrase, "the passphrase could not be read", err)
	}
	defer secret.Wipe(passphrase)
	return file.Open(cfg.Dir, passphrase, cfg.ArenaSize, secret.Options{ReseedInterval: cfg.RNGReseedIntervalOps})
}

// openError turns what opening a store can fail with into the table's terms.
func openError(err error) error {
	var known *api.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, backends.ErrBusy), errors.Is(err, audit.ErrBusy):
		return api.WrapError(api.ReasonStoreBusy, "the store is open in another process", err)
	case errors.Is(err, backends.ErrMissing):
		return api.WrapError(api.ReasonStoreMissing, "there is no store in this folder, or a part of it is missing", err)
	case errors.Is(err, backends.ErrExists):
		return api.WrapError(api.ReasonStoreExists, "there is something in this folder already", err)
	case errors.Is(err, errNewer):
		return api.WrapError(api.ReasonStoreNewer, "the store was written by a newer version of ron-kms", err)
	case errors.Is(err, backends.ErrPassphrase):
		return api.WrapError(api.ReasonPassphrase, "the passphrase does not open this store (or root.age is damaged)", err)
	case errors.Is(err, backends.ErrTampered):
		return api.WrapError(api.ReasonStoreTampered, "the store was changed from outside or damaged", err)
	case errors.Is(err, backends.ErrArenaFull), errors.Is(err, secret.ErrArenaFull):
		return api.WrapError(api.ReasonArenaFull, "the locked memory for secrets is full", err)
	}
	return api.WrapError(api.ReasonStore, "the store cannot be opened", err)
}

// publish makes a stored key usable.
func (k *KMS) publish(next *key) {
	old := k.keys.put(next)
	gauge := k.metrics.Keys.WithLabelValues(next.kid.Tenant, next.kid.Purpose, next.alg.Family())
	wasUsable, usable := old != nil && old.signs(), next.signs()
	switch {
	case usable && !wasUsable:
		gauge.Inc()
	case wasUsable && !usable:
		gauge.Dec()
	}
}

// tampered notes a verdict: from now on, and until the store is repaired and
// opened again, only verification goes on.
func (k *KMS) tampered(cause error) {
	k.metrics.AuditIntegrityFailed.Inc()
	k.log.Error("integrity check failed: writes are refused, verify goes on", "cause", cause.Error())
	reason := api.ReasonStoreTampered
	var integrity *audit.IntegrityError
	if errors.As(cause, &integrity) {
		reason = api.ReasonAudit
	}
	k.failure.CompareAndSwap(nil, api.WrapError(reason, "an integrity check failed; only verify is available", cause))
}

// failed notes that the store or the log went out of order while running.
func (k *KMS) failed(reason api.Reason, cause error) *api.Error {
	e := api.WrapError(reason, "the store is out of order; only verify is available", cause)
	if k.failure.CompareAndSwap(nil, e) {
		k.log.Error("writes are refused until restart", "cause", cause.Error())
	}
	return e
}

// writable returns nil if private keys may be used.
func (k *KMS) writable() error {
	if e := k.failure.Load(); e != nil {
		return e
	}
	if k.audit == nil {
		return api.NewError(api.ReasonAudit, "there is no audit log; only verify is available")
	}
	if err := k.audit.Err(); err != nil {
		return api.WrapError(api.ReasonAuditWrite, "the audit log cannot be written; only verify is available", err)
	}
	if err := k.audit.Full(); err != nil {
		return api.WrapError(api.ReasonAuditFull, "the disk of the audit log is full; only verify is available", err)
	}
	if err := k.time.Floor(time.Time{}, k.tolerance); err != nil {
		return api.WrapError(api.ReasonClock, "the clock is behind the audit log; only verify is available", err)
	}
	return nil
}

// within checks that now is inside a window, widened by the tolerance.
func (k *KMS) within(v *api.Validity) error {
	if v == nil {
		return nil
	}
	var notBefore, notAfter *int64
	if v.NotBeforeMS != 0 {
		notBefore = &v.NotBeforeMS
	}
	if v.NotAfterMS != 0 {
		notAfter = &v.NotAfterMS
	}
	if err := k.time.Check(notBefore, notAfter, k.tolerance); err != nil {
		return api.WrapError(api.ReasonTimeSkew, "now is outside the validity window, tolerance included", err)
	}
	return nil
}

// append makes records durable, all in one commit.
func (k *KMS) append(ctx context.Context, records ...*audit.Record) ([]*api.Receipt, error) {
	got, err := k.audit.Append(ctx, records...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, timeout(err)
		}
		if errors.Is(err, audit.ErrFull) {
			return nil, api.WrapError(api.ReasonAuditFull, "the disk of the audit log is full; only verify is available", err)
		}
		if k.audit.Err() == nil {
			return nil, api.WrapError(api.ReasonInternal, "the operation could not be recorded", err)
		}
		return nil, k.failed(api.ReasonAuditWrite, err)
	}
	receipts := make([]*api.Receipt, len(got))
	for i, r := range got {
		receipts[i] = &api.Receipt{Log: k.signer.origin, LogIndex: r.Index, KeySeq: r.KeySeq, CheckpointSize: r.CheckpointSize}
	}
	// Time does not run back: what is on record is the least that now can be.
	_ = k.time.Floor(records[len(records)-1].Time, k.tolerance) // writable asks
	return receipts, nil
}

// offer hands a record over without waiting.
func (k *KMS) offer(r *audit.Record) {
	if k.audit != nil {
		k.audit.Offer(r)
	}
}

// sumUpNoise records how many callers were refused without being known.
func (k *KMS) sumUpNoise() {
	t := time.NewTicker(noiseInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			k.flushNoise()
			k.flushVerdicts()
		case <-k.stop:
			k.flushNoise()
			return
		}
	}
}

func (k *KMS) flushNoise() {
	if n := k.noise.Swap(0); n > 0 {
		k.offer(&audit.Record{Kind: audit.KindNoise, Time: k.clock(), Result: string(api.CodeNoCapability), Count: n})
	}
	k.throttledMu.Lock()
	throttled := k.throttled
	k.throttled = make(map[string]uint64)
	k.throttledMu.Unlock()
	for tenant, n := range throttled {
		k.offer(&audit.Record{Kind: audit.KindDenied, Time: k.clock(), Tenant: tenant, Result: string(api.CodeBackpressure), Count: n})
	}
}

// maxThrottled bounds the tenants whose refusals are counted apart.
const maxThrottled = 1024

// throttle counts a refusal under load. Such refusals cost no cryptography and
// reach the audit log in sums, so that a flood of calls does not become one of
// records.
func (k *KMS) throttle(tenant string) {
	k.throttledMu.Lock()
	defer k.throttledMu.Unlock()
	if _, known := k.throttled[tenant]; !known && len(k.throttled) >= maxThrottled {
		tenant = ""
	}
	k.throttled[tenant]++
}

// Call performs a verb with JSON in and out: the generic call of the C ABI and
// the body of every REST endpoint.
func (k *KMS) Call(ctx context.Context, s *Session, verb string, body []byte) ([]byte, error) {
	v, ok := VerbNamed(verb)
	if !ok {
		return nil, api.NewError(api.ReasonUnsupported, "there is no such verb")
	}
	if len(body) > k.cfg.MaxPayload {
		return nil, api.NewError(api.ReasonTooLarge, "the request is larger than KMS_MAX_PAYLOAD")
	}
	req := v.Request()
	if err := api.Decode(body, req); err != nil {
		return nil, k.Rejected(err)
	}
	resp, err := k.Do(ctx, s, v, req)
	if err != nil {
		return nil, err
	}
	out, err := api.Encode(resp)
	if err != nil {
		return nil, api.WrapError(api.ReasonInternal, "the response could not be written", err)
	}
	return out, nil
}

// Rejected counts a request that a face refused before it became a call, and
// returns its error in the table's terms.
func (k *KMS) Rejected(err error) *api.Error {
	e := api.AsError(err)
	k.metrics.Reject.WithLabelValues(string(e.Reason)).Inc()
	return e
}

// Metrics are this KMS's Prometheus metrics.
func (k *KMS) Metrics() *metrics.Metrics { return k.metrics }

// Config is the configuration the KMS was opened with; it must not be changed.
func (k *KMS) Config() *config.Config { return k.cfg }

// Now is the KMS's wall clock.
func (k *KMS) Now() time.Time { return k.clock() }

// Checkpoint is the latest signed checkpoint of the audit log, a C2SP note; it
// is nil if the log failed its check.
func (k *KMS) Checkpoint() []byte {
	if k.audit == nil {
		return nil
	}
	return k.audit.Checkpoint()
}

// VerifierKey is the public keys of the audit log's checkpoints, as C2SP vkeys
// separated by spaces: all of them sign each checkpoint.
func (k *KMS) VerifierKey() string {
	if k.signer == nil {
		return ""
	}
	return k.signer.keys.String()
}

// TokenKeys are the root keys for capability tokens, for a program that mints
// its own: dev mode, and tests.
func (k *KMS) TokenKeys() *TokenKeys { return k.tokens }

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`  // every verb works
	Verify  bool     `json:"verify"` // verify works
	Mode    string   `json:"mode"`   // "durable" or "amnesia"
	Backend string   `json:"backend"`
	Missing []string `json:"missing"` // what is not in order, if any
	// Degraded is what works and should be looked at: "clock_synchronized" if
	// the kernel does not say that the clock is disciplined, "audit_witness" if
	// a witness did not answer, "audit_anchor" if an anchor was not written or is
	// far behind the log.
	Degraded []string `json:"degraded"`
	Reason   string   `json:"reason,omitempty"` // a reason of the error table
}

// Ready reports what works.
func (k *KMS) Ready() Readiness {
	r := Readiness{Ready: true, Verify: true, Mode: "durable", Backend: k.cfg.Backend, Missing: []string{}, Degraded: []string{}}
	if s, err := k.time.Status(); err != nil || !s.Synchronized {
		r.Degraded = append(r.Degraded, "clock_synchronized")
	}
	r.Degraded = append(r.Degraded, k.auditDegraded()...)
	if k.cfg.IsAmnesia() {
		r.Mode = "amnesia"
	}
	if k.closed.Load() {
		r.Ready, r.Verify, r.Reason = false, false, string(api.ReasonClosed)
		r.Missing = append(r.Missing, "open")
		return r
	}
	if err := k.writable(); err != nil {
		e := api.AsError(err)
		r.Ready, r.Reason = false, string(e.Reason)
		part := "store_ready"
		if slices.Contains([]api.Reason{api.ReasonAudit, api.ReasonAuditWrite, api.ReasonAuditFull}, e.Reason) {
			part = "audit_ready"
		}
		r.Missing = append(r.Missing, part)
	}
	return r
}

// Close refuses new calls, waits for running ones, writes the last checkpoint
// and wipes all secrets. It may be called more than once.
func (k *KMS) Close() error {
	if k.closed.Swap(true) {
		return nil
	}
	close(k.stop)
	k.done.Wait()
	k.calls.Lock()
	defer k.calls.Unlock()
	return k.release()
}

// release gives back whatever open has got so far.
func (k *KMS) release() error {
	var errs []error
	if k.policy != nil {
		k.policy.Close()
	}
	if k.audit != nil {
		k.flushVerdicts()
		k.flushNoise()
		errs = append(errs, k.audit.Close())
		// A store that is evidence stays as it was found.
		if e := k.failure.Load(); e == nil || e.Code != api.CodeAuditIntegrity {
			errs = append(errs, k.noteLog(context.Background(), k.vault.head.Lost+k.audit.Lost()))
		}
	}
	if k.tokens != nil {
		k.tokens.Close()
	}
	for _, s := range k.secrets {
		s.Destroy()
	}
	if k.personal != nil {
		k.personal.close()
	}
	if k.vault != nil {
		k.vault.mac.Destroy()
		errs = append(errs, k.vault.Backend.Close())
	}
	return errors.Join(errs...)
}

// auditDir is where a store keeps its log.
func auditDir(dir string) string { return filepath.Join(dir, "audit") }
