package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// InitOptions are the choices of a new store.
type InitOptions struct {
	// WorkFactor is log2 of scrypt's N for the passphrase, 10 to 20; 0 is 18,
	// about a second on one core.
	WorkFactor int
}

// InitReport is what init made, for the operator to write down.
type InitReport struct {
	StoreID     string // UUID
	Origin      string // the audit log's name in its checkpoints
	VerifierKey string // C2SP vkeys, one of each algorithm: give them to auditors
	TokenRootID string // id of the first token root key
}

// Init makes a new store in cfg.Dir, which must not exist or be empty: all of
// it, or nothing. It does not open the store.
func Init(ctx context.Context, cfg *config.Config, passphrase []byte, o InitOptions) (*InitReport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, api.WrapError(api.ReasonConfig, "the configuration is not valid", err)
	}
	if cfg.IsAmnesia() {
		return nil, api.NewError(api.ReasonConfig, "an in-memory store needs no init")
	}
	if len(passphrase) == 0 {
		return nil, api.NewError(api.ReasonPassphrase, "the passphrase is empty")
	}
	report, err := initStore(ctx, cfg, passphrase, o)
	if err != nil {
		return nil, openError(err)
	}
	return report, nil
}

func initStore(ctx context.Context, cfg *config.Config, passphrase []byte, o InitOptions) (*InitReport, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, backends.ErrExists
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Built beside its place and renamed into it, so that a crash or an error
	// half-way leaves no half store under the name.
	parent := filepath.Dir(dir)
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	report, err := fill(ctx, cfg, tmp, passphrase, o)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	return report, file.SyncDir(parent)
}

func fill(ctx context.Context, cfg *config.Config, dir string, passphrase []byte, o InitOptions) (report *InitReport, err error) {
	if err := file.Create(dir, passphrase, o.WorkFactor); err != nil {
		return nil, err
	}
	b, err := file.Open(dir, passphrase, cfg.ArenaSize, secret.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	v, err := newVault(b)
	if err != nil {
		return nil, err
	}
	defer v.mac.Destroy()
	now := time.Now()
	if err := bootstrap(ctx, v); err != nil {
		return nil, err
	}
	tokenID := newTokenKeyID(now)
	if err := createTokenKey(dir, b, tokenID); err != nil {
		return nil, err
	}
	signer, frames, err := systemKeys(ctx, v)
	if err != nil {
		return nil, err
	}
	defer frames.Destroy()
	if err := audit.Create(auditDir(dir), auditOptions(cfg, signer, frames, nil)); err != nil {
		return nil, err
	}
	return &InitReport{
		StoreID: v.head.StoreID, Origin: signer.origin, VerifierKey: signer.keys.String(), TokenRootID: tokenID,
	}, file.SyncDir(dir)
}

// bootstrap writes the first records of an empty store: its identity, the key
// that signs audit checkpoints, in two halves, and the key that authenticates audit frames.
// Both keys are random and sealed, not derived, so that a new root key can
// wrap them again without a break in the log.
func bootstrap(ctx context.Context, v *vault) error {
	v.head = headRecord{StoreID: uuid.NewString()}
	attestation := make([]named, len(attestationTracks))
	for i, t := range attestationTracks {
		m, err := v.Generate(ctx, attestationRef(v.head.StoreID, t, 1))
		if err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		attestation[i] = named{t.name, systemRecord{Public: m.Public, Sealed: m.Sealed}}
	}
	seal, err := v.StoreKey(labelSystem, 32)
	if err != nil {
		return err
	}
	defer seal.Destroy()
	frames, err := v.Arena().Random(32)
	if err != nil {
		return err
	}
	defer frames.Destroy()
	sealed, err := seal.Seal(frames, []byte(nameAuditFrames))
	if err != nil {
		return err
	}
	return v.commit(ctx, 0, 0, append(attestation, named{nameAuditFrames, systemRecord{Sealed: sealed}})...)
}
