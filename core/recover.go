package core

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// A recovery gives up a log that was refused, and begins another. Each step is
// durable before the next: the new log is made beside the old one; one commit of
// the store takes it for its own, which decides; the old log is renamed, never
// removed, and the new one takes its place, which the next opening does if a crash
// cut it off.

// VerdictContradiction says that the log is right by itself, and that the
// store or the configuration knows better.
const VerdictContradiction audit.Verdict = "contradiction"

// ErrNothingToRecover is returned by Recover for a store in good order.
var ErrNothingToRecover = errors.New("the log and the store are in order: there is nothing to recover")

// maxReason bounds what an operator says of a recovery, in bytes.
const maxReason = 1000

// RecoverOptions are the choices of a recovery.
type RecoverOptions struct {
	// Reason is what the operator found out and decided, for the record: a line
	// of 1 to 1000 bytes. Only Accept needs it.
	Reason string
	// Accept does it. Without it, Recover changes nothing and reports.
	Accept bool
}

// A RecoverReport says what is wrong, and what a recovery does about it.
type RecoverReport struct {
	// What was found.
	Verdict        audit.Verdict
	Found          string // in plain words
	Origin         string // what the log calls itself; "" if that cannot be read
	LogID          string // hexadecimal; "" if it cannot be read
	Records        uint64 // that are right
	Later          uint64 // records after those that can be read by themselves
	Root           [32]byte
	CheckpointSize uint64 // of the latest checkpoint that fits them
	CheckpointHash [32]byte
	Anchors        map[string]uint64 // how many records each anchor knows of
	Mirrored       bool              // a mirror has what follows the records that are right: opening the store may take it back

	// What becomes of the keys. Names are kids without a version.
	Adopted   int      // keys that go on
	Lost      []string // the log knows them, and the store does not have them
	Destroyed []string // the log says that they were destroyed, wholly or in part, and the store has their private part: it is erased
	Rotated   []string // the log knows later versions, whose private part is lost
	Erased    []string // tenants whose audit key the log says was destroyed, and the store has: it is erased
	Unproven  []string // the store has a later change, which the log does not say

	// The new log.
	NewOrigin   string
	VerifierKey string // C2SP vkeys
	MinIndex    bool   // KMS_AUDIT_MIN_INDEX is of the old log and must go
	Done        bool
	Refused     string // where the refused log is, if Done; "" if there was none
}

// Recover looks into a store whose log is refused, or that contradicts its log,
// and if it is told to, gives that log up and begins a new one
// (docs/runbooks/integrity.md). Keys that the log says were destroyed stay so. The
// store must be open nowhere else, and its own records must be right.
func Recover(ctx context.Context, cfg *config.Config, o Options, choice RecoverOptions) (*RecoverReport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, api.WrapError(api.ReasonConfig, "the configuration is not valid", err)
	}
	if cfg.IsAmnesia() {
		return nil, api.NewError(api.ReasonConfig, "an in-memory store has a new log each time")
	}
	if choice.Accept && !validReason(choice.Reason) {
		return nil, api.NewError(api.ReasonMalformed, "a recovery needs a reason: one line of 1 to 1000 bytes")
	}
	r, err := newRecovery(ctx, cfg, o, choice)
	if err != nil {
		return nil, openError(err)
	}
	defer r.close()
	err = r.inspect(ctx)
	if err == nil && choice.Accept {
		for _, step := range r.steps() {
			if err = step(ctx); err != nil {
				break
			}
		}
	}
	switch closing := r.close(); {
	case errors.Is(err, ErrNothingToRecover):
		return nil, err
	case err != nil || closing != nil:
		return nil, openError(errors.Join(err, closing))
	}
	return &r.report, nil
}

func validReason(text string) bool {
	return text != "" && len(text) <= maxReason && utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// recovery is a recovery under way.
type recovery struct {
	cfg    *config.Config
	choice RecoverOptions
	clock  func() time.Time
	vault  *vault
	found  *contents
	signer *attestation // for the new log
	frames *secret.Bytes

	generation uint32 // of the new log
	memory     *memory
	plan       *adoption
	report     RecoverReport
}

func newRecovery(ctx context.Context, cfg *config.Config, o Options, choice RecoverOptions) (r *recovery, err error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	backend, err := openBackend(cfg, o)
	if err != nil {
		return nil, err
	}
	r = &recovery{cfg: cfg, choice: choice, clock: o.Clock, memory: newMemory()}
	if r.vault, err = newVault(backend); err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	opened := r
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.close())
		}
	}()
	if r.found, err = r.vault.load(ctx); err != nil {
		return nil, err
	}
	// What stands in for the log must itself be right.
	if err := errors.Join(r.found.damaged...); err != nil {
		return nil, api.WrapError(api.ReasonStoreTampered, "a record of the store is damaged: restore keys.db first", err)
	}
	if _, err := finishRecovery(cfg.Dir, r.vault.head, r.clock()); err != nil {
		return nil, err
	}
	if err := settleHandover(ctx, r.vault, auditDir(cfg.Dir)); err != nil {
		return nil, err
	}
	if r.generation, err = r.nextGeneration(); err != nil {
		return nil, err
	}
	r.signer, r.frames, err = systemKeysFor(ctx, r.vault, auditOrigin(r.vault.head.StoreID, r.generation))
	return r, err
}

// close releases the store. It may be called more than once.
func (r *recovery) close() error {
	if r.frames != nil {
		r.frames.Destroy()
	}
	r.vault.mac.Destroy()
	return r.vault.Backend.Close()
}

// nextGeneration is one that no log of this store has had, as far as the folder
// knows: a store that was put back does not know of later logs.
func (r *recovery) nextGeneration() (uint32, error) {
	next := r.vault.head.LogGeneration
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return 0, err
	}
	log := filepath.Base(auditDir(r.cfg.Dir))
	for _, e := range entries {
		if e.Name() != log && !strings.HasPrefix(e.Name(), log+refusedInfix) {
			continue
		}
		if origin, err := audit.StoredOrigin(filepath.Join(r.cfg.Dir, e.Name())); err == nil {
			if n, ok := generationOf(r.vault.head.StoreID, origin); ok {
				next = max(next, n)
			}
		}
	}
	return next + 1, nil
}

// generationOf is the inverse of auditOrigin.
func generationOf(storeID, origin string) (uint32, bool) {
	_, text, _ := strings.Cut(strings.TrimPrefix(origin, auditOrigin(storeID, 0)), "/")
	n, err := strconv.ParseUint("0"+text, 10, 32)
	return uint32(n), err == nil && auditOrigin(storeID, uint32(n)) == origin
}

// inspect finds out what is wrong, and what the log and the store know.
func (r *recovery) inspect(ctx context.Context) error {
	dir, head := auditDir(r.cfg.Dir), r.vault.head
	want := auditOrigin(head.StoreID, head.LogGeneration)
	origin, err := audit.StoredOrigin(dir)
	if _, ok := generationOf(head.StoreID, origin); err != nil || !ok {
		origin = want
	}
	a, frames, err := systemKeysFor(ctx, r.vault, origin)
	if err != nil {
		return err
	}
	defer frames.Destroy()
	o := auditOptions(r.cfg, a, frames, r.clock)
	if o.Witnesses, err = witnessesOf(r.cfg); err != nil {
		return err
	}
	if o.Anchors, err = anchorsOf(ctx, r.knownAnchors(), r.vault, o); err != nil {
		return err
	}
	f, err := audit.Inspect(ctx, dir, o, r.memory.take)
	if err != nil {
		return err
	}
	r.memory.end()
	r.report.Records, r.report.Root, r.report.Anchors = f.Size(), f.Report.Root, f.Anchors
	r.report.Later, r.report.Mirrored = f.Later, f.Mirrored
	r.report.CheckpointSize, r.report.CheckpointHash = f.Report.CheckpointSize, f.CheckpointHash
	if f.ID != [16]byte{} {
		r.report.Origin, r.report.LogID = f.Report.Origin, hex.EncodeToString(f.ID[:])
	}
	switch err := r.contradiction(f, want, origin); {
	case f.Refused != nil:
		r.report.Verdict, r.report.Found = f.Refused.Verdict, f.Refused.Reason
	case err != nil:
		r.report.Verdict, r.report.Found = VerdictContradiction, err.Error()
	default:
		return ErrNothingToRecover
	}
	r.report.NewOrigin, r.report.VerifierKey = r.signer.origin, r.signer.keys.String()
	r.report.MinIndex = r.cfg.AuditMinIndex > 0
	r.plan = adopt(r.found, r.memory, f, &r.report)
	return r.plan.erase(ctx, r.vault, r.found, r.memory, r.generation, &r.report)
}

// contradiction is what openAudit finds wrong with a log that is right by itself.
func (r *recovery) contradiction(f *audit.Finding, want, origin string) error {
	if f.Refused != nil {
		return nil
	}
	if origin != want {
		return fmt.Errorf("the log is %s, and the store has %s: one of them was put back", origin, want)
	}
	if err := shorter(f.Size(), r.vault.head.LogSize, r.cfg.AuditMinIndex); err != nil {
		return err
	}
	_, err := compare(f, r.found)
	return err
}

// knownAnchors is the configuration with the anchors that the log has been
// written to: reading makes no new ones.
func (r *recovery) knownAnchors() *config.Config {
	cfg := *r.cfg
	if !slices.Contains(r.vault.head.Anchors, "dir:"+cfg.AuditAnchorDir) {
		cfg.AuditAnchorDir = ""
	}
	if _, err := audit.StoredID(auditDir(cfg.Dir)); err != nil || !slices.ContainsFunc(r.vault.head.Anchors, isTPM) {
		cfg.AuditAnchorTPM = ""
	}
	return &cfg
}

func (r *recovery) steps() []func(context.Context) error {
	return []func(context.Context) error{r.clear, r.build, r.commit, r.moveAside, r.moveIn}
}

// clear removes what a recovery left that came to nothing.
func (r *recovery) clear(context.Context) error { return os.RemoveAll(nextDir(r.cfg.Dir)) }

// build makes the new log.
func (r *recovery) build(ctx context.Context) error {
	accepted, err := r.record()
	if err != nil {
		return err
	}
	o := auditOptions(r.cfg, r.signer, r.frames, r.clock)
	r.plan.size, err = audit.Succeed(ctx, nextDir(r.cfg.Dir), o, accepted, func(l *audit.Log) error {
		return r.plan.write(ctx, l)
	})
	if err != nil {
		return err
	}
	return file.SyncDir(r.cfg.Dir)
}

// record is what the new log says of the recovery.
func (r *recovery) record() (*audit.Record, error) {
	detail, err := json.Marshal(struct {
		Origin         string            `json:"origin,omitempty"`
		Log            string            `json:"log,omitempty"`
		Verdict        audit.Verdict     `json:"verdict"`
		Found          string            `json:"found"`
		Records        uint64            `json:"records"`
		Later          uint64            `json:"later,omitzero"`
		Root           string            `json:"root,omitempty"`
		CheckpointSize uint64            `json:"checkpoint_size,omitzero"`
		Checkpoint     string            `json:"checkpoint_sha256,omitempty"`
		Anchors        map[string]uint64 `json:"anchors,omitempty"`
		Adopted        int               `json:"adopted"`
		Lost           int               `json:"lost"`
		Destroyed      int               `json:"destroyed"`
		Rotated        int               `json:"rotated"`
		Erased         int               `json:"erased"`
		Unproven       int               `json:"unproven"`
		Reason         string            `json:"reason"`
	}{
		r.report.Origin, r.report.LogID, r.report.Verdict, r.report.Found, r.report.Records, r.report.Later,
		base64.StdEncoding.EncodeToString(r.report.Root[:]), r.report.CheckpointSize, hex.EncodeToString(r.report.CheckpointHash[:]),
		r.report.Anchors, r.report.Adopted, len(r.report.Lost), len(r.report.Destroyed), len(r.report.Rotated), len(r.report.Erased), len(r.report.Unproven),
		r.choice.Reason,
	}, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	r.plan.opID = uuid.New()
	return &audit.Record{
		Kind: audit.KindRecovery, Op: opAccepted, OpID: r.plan.opID, Count: r.report.Records, InputHash: r.report.CheckpointHash, Detail: detail,
	}, nil
}

// commit makes the new log that of the store.
func (r *recovery) commit(ctx context.Context) error {
	h := &r.vault.head
	// Anchors remember the old log, which is not gone back to.
	h.LogGeneration, h.Anchors, h.Intent, h.LogSize = r.generation, nil, 0, 0
	return r.vault.commit(ctx, r.plan.intent+1, r.plan.size, r.plan.records()...)
}

func (r *recovery) moveAside(context.Context) (err error) {
	r.report.Refused, err = moveAside(r.cfg.Dir, r.clock())
	return err
}

func (r *recovery) moveIn(context.Context) error {
	r.report.Done = true
	return moveIn(r.cfg.Dir)
}

// refusedInfix and a time follow the name of a log that was given up.
const refusedInfix = ".refused-"

func refusedSuffix(t time.Time) string { return refusedInfix + t.UTC().Format("20060102T150405Z") }

// nextDir is where a recovery makes the new log.
func nextDir(dir string) string { return auditDir(dir) + ".next" }

// finishRecovery puts the new log of a recovery into its place, if the store has
// taken it for its own and that was cut off. It returns where the old log is
// then, or "".
func finishRecovery(dir string, head headRecord, now time.Time) (aside string, err error) {
	want := auditOrigin(head.StoreID, head.LogGeneration)
	if head.LogGeneration == 0 {
		return "", nil
	}
	if origin, err := audit.StoredOrigin(nextDir(dir)); err != nil || origin != want {
		return "", nil
	}
	if origin, err := audit.StoredOrigin(auditDir(dir)); err == nil && origin == want {
		return "", nil
	}
	if aside, err = moveAside(dir, now); err != nil {
		return "", err
	}
	return aside, moveIn(dir)
}

// moveAside renames the log of the store in dir, if there is one, and returns
// the new name.
func moveAside(dir string, now time.Time) (string, error) {
	name := auditDir(dir) + refusedSuffix(now)
	for n := 2; ; n++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s%s-%d", auditDir(dir), refusedSuffix(now), n)
	}
	err := os.Rename(auditDir(dir), name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return name, file.SyncDir(dir)
}

// moveIn gives the new log its name.
func moveIn(dir string) error {
	if err := os.Rename(nextDir(dir), auditDir(dir)); err != nil {
		return err
	}
	return file.SyncDir(dir)
}
