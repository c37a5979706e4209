package core

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/backends/software"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/secret"
)

// TokenKeys are the root keys that capability tokens are verified with. They
// rest sealed, one file each, beside the store and not inside it: minting a
// token needs no lock on the store, so it works while the daemon runs.
type TokenKeys struct {
	roots map[string]*secret.Bytes
	owned *secret.Arena // closed with the TokenKeys, if not nil
}

const (
	tokensDir     = "tokens"
	tokenKeyExt   = ".key"
	amnesiaRootID = "amnesia"
)

func tokenAAD(id string) []byte { return append([]byte("ron-kms/token-root/v1\x00"), id...) }

// createTokenKey makes the first root key of a new store.
func createTokenKey(dir string, b backends.Backend, id string) error {
	seal, err := b.StoreKey(labelTokens, 32)
	if err != nil {
		return err
	}
	defer seal.Destroy()
	root, err := b.Arena().Random(capability.RootKeyBytes)
	if err != nil {
		return err
	}
	defer root.Destroy()
	sealed, err := seal.Seal(root, tokenAAD(id))
	if err != nil {
		return err
	}
	folder := filepath.Join(dir, tokensDir)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(folder, id+tokenKeyExt), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(hex.EncodeToString(sealed) + "\n")
	return errors.Join(err, f.Sync(), f.Close(), file.SyncDir(folder))
}

// loadTokenKeys unseals all root keys of a store into the arena.
func loadTokenKeys(dir string, seal *secret.Bytes, arena *secret.Arena) (*TokenKeys, error) {
	folder := filepath.Join(dir, tokensDir)
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokens: %w", backends.ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	t := &TokenKeys{roots: make(map[string]*secret.Bytes)}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), tokenKeyExt)
		if !ok || !capability.ValidRootID(id) {
			continue
		}
		text, err := file.ReadPrivate(filepath.Join(folder, e.Name()), 4096)
		if err != nil {
			return nil, fmt.Errorf("tokens: %w", err)
		}
		sealed, err := hex.DecodeString(strings.TrimSuffix(string(text), "\n"))
		if err != nil || hex.EncodeToString(sealed)+"\n" != string(text) {
			return nil, fmt.Errorf("tokens: %s: %w", e.Name(), backends.ErrTampered)
		}
		root, err := seal.Unseal(arena, sealed, tokenAAD(id))
		if errors.Is(err, secret.ErrUnseal) {
			return nil, fmt.Errorf("tokens: %s: %w", e.Name(), backends.ErrTampered)
		}
		if err != nil {
			return nil, fmt.Errorf("tokens: %w", err)
		}
		t.roots[id] = root
	}
	if len(t.roots) == 0 {
		return nil, fmt.Errorf("tokens: no root key: %w", backends.ErrMissing)
	}
	return t, nil
}

// OpenTokenKeys unseals the token root keys of the store in dir, for minting.
// It needs the passphrase and no lock.
func OpenTokenKeys(dir string, passphrase []byte) (*TokenKeys, error) {
	arena, err := secret.NewArena(64 << 10)
	if err != nil {
		return nil, openError(err)
	}
	t, err := openTokenKeys(dir, passphrase, arena)
	if err != nil {
		arena.Close()
		return nil, openError(err)
	}
	t.owned = arena
	return t, nil
}

func openTokenKeys(dir string, passphrase []byte, arena *secret.Arena) (*TokenKeys, error) {
	root, err := file.OpenRoot(dir, passphrase, arena)
	if err != nil {
		return nil, err
	}
	custodian, err := software.New(arena, root)
	if err != nil {
		return nil, err
	}
	defer custodian.Close()
	seal, err := custodian.StoreKey(labelTokens, 32)
	if err != nil {
		return nil, err
	}
	defer seal.Destroy()
	return loadTokenKeys(dir, seal, arena)
}

// amnesiaTokenKeys makes a root key that lives as long as the process.
func amnesiaTokenKeys(arena *secret.Arena) (*TokenKeys, error) {
	root, err := arena.Random(capability.RootKeyBytes)
	if err != nil {
		return nil, err
	}
	return &TokenKeys{roots: map[string]*secret.Bytes{amnesiaRootID: root}}, nil
}

// Root implements [capability.Keys].
func (t *TokenKeys) Root(id string, use func(key []byte)) error {
	root, ok := t.roots[id]
	if !ok {
		return capability.ErrUnknownRoot
	}
	return root.Use(use)
}

// Newest is the id of the key that new tokens are minted with: the last in
// order, which for the ids that init makes (dates) is the newest.
func (t *TokenKeys) Newest() string {
	ids := make([]string, 0, len(t.roots))
	for id := range t.roots {
		ids = append(ids, id)
	}
	return slices.Max(ids)
}

// Close wipes the keys.
func (t *TokenKeys) Close() {
	for _, r := range t.roots {
		r.Destroy()
	}
	if t.owned != nil {
		t.owned.Close()
	}
}

// newTokenKeyID names a root key by the second it was made in.
func newTokenKeyID(now time.Time) string { return now.UTC().Format("20060102t150405z") }
