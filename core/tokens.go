package core

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/backends/software"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/secret"
)

// TokenKeys are the root keys that capability tokens are verified with, and
// the list of what was revoked. They rest beside the store and not inside it,
// the keys sealed, one file each: minting, rotating and revoking need no lock
// on the store, so they work while the daemon runs, and it takes notice.
type TokenKeys struct {
	folder  string                     // that holds the files; "" in memory
	revoked *capability.RevocationList // nil in memory
	arena   *secret.Arena
	seal    *secret.Bytes // opens root keys that are added later
	owned   bool          // the arena is closed with the TokenKeys

	mu    sync.RWMutex // guards roots
	roots map[string]*secret.Bytes

	problem atomic.Pointer[error] // that the list of revocations has
	cancel  context.CancelFunc    // ends watch; nil if nobody watches
	watched sync.WaitGroup
}

const (
	tokensDir     = "tokens"
	tokenKeyExt   = ".key"
	revokedFile   = "revoked"
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
	folder := filepath.Join(dir, tokensDir)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	return writeTokenKey(folder, id, seal, b.Arena())
}

// writeTokenKey makes a root key and writes it under a name that must not be
// there yet: whole or not at all.
func writeTokenKey(folder, id string, seal *secret.Bytes, arena *secret.Arena) error {
	root, err := arena.Random(capability.RootKeyBytes)
	if err != nil {
		return err
	}
	defer root.Destroy()
	sealed, err := seal.Seal(root, tokenAAD(id))
	if err != nil {
		return err
	}
	tmp, err := writeTemp(folder, []byte(hex.EncodeToString(sealed)+"\n"))
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// A link, unlike a rename, takes no other key's place.
	if err := os.Link(tmp, filepath.Join(folder, id+tokenKeyExt)); err != nil {
		return err
	}
	return file.SyncDir(folder)
}

// writeTemp writes a flushed file beside those that have names.
func writeTemp(folder string, data []byte) (name string, err error) {
	f, err := os.CreateTemp(folder, ".new-") // of mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// loadTokenKeys unseals all root keys of a store into the arena, reads the
// list of revocations, and from then on takes notice of both.
func loadTokenKeys(dir string, seal *secret.Bytes, arena *secret.Arena) (*TokenKeys, error) {
	t, err := readTokenKeys(dir, seal, arena)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	t.watched.Go(func() { t.revoked.Watch(ctx, func(err error) { t.problem.Store(&err) }) })
	return t, nil
}

func readTokenKeys(dir string, seal *secret.Bytes, arena *secret.Arena) (*TokenKeys, error) {
	t := &TokenKeys{folder: filepath.Join(dir, tokensDir), arena: arena, roots: make(map[string]*secret.Bytes)}
	if err := t.read(seal); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *TokenKeys) read(seal *secret.Bytes) error {
	ids, err := tokenKeyIDs(t.folder)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return fmt.Errorf("tokens: no root key: %w", backends.ErrMissing)
	}
	if t.revoked, err = readRevoked(t.folder); err != nil {
		return err
	}
	if t.seal, err = copySecret(t.arena, seal); err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	for _, id := range ids {
		if t.roots[id], err = t.unseal(id); err != nil {
			return err
		}
	}
	return nil
}

// tokenKeyIDs are the ids of the root keys that a store has, in order.
func tokenKeyIDs(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokens: %w", backends.ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), tokenKeyExt); ok && capability.ValidRootID(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// unseal reads one root key. Its error matches backends.ErrMissing if there is
// none of this id.
func (t *TokenKeys) unseal(id string) (*secret.Bytes, error) {
	text, err := file.ReadPrivate(filepath.Join(t.folder, id+tokenKeyExt), 4096)
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	sealed, err := hex.DecodeString(strings.TrimSuffix(string(text), "\n"))
	if err != nil || hex.EncodeToString(sealed)+"\n" != string(text) {
		return nil, fmt.Errorf("tokens: %s: %w", id, backends.ErrTampered)
	}
	root, err := t.seal.Unseal(t.arena, sealed, tokenAAD(id))
	if errors.Is(err, secret.ErrUnseal) {
		return nil, fmt.Errorf("tokens: %s: %w", id, backends.ErrTampered)
	}
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	return root, nil
}

// copySecret gives a secret a second owner.
func copySecret(arena *secret.Arena, from *secret.Bytes) (*secret.Bytes, error) {
	to, err := arena.New(from.Len())
	if err != nil {
		return nil, err
	}
	var inner error
	if err := from.Use(func(p []byte) { inner = to.Use(func(q []byte) { copy(q, p) }) }); err != nil || inner != nil {
		to.Destroy()
		return nil, errors.Join(err, inner)
	}
	return to, nil
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
	t.owned = true
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
	return readTokenKeys(dir, seal, arena)
}

// amnesiaTokenKeys makes a root key that lives as long as the process.
func amnesiaTokenKeys(arena *secret.Arena) (*TokenKeys, error) {
	root, err := arena.Random(capability.RootKeyBytes)
	if err != nil {
		return nil, err
	}
	return &TokenKeys{arena: arena, roots: map[string]*secret.Bytes{amnesiaRootID: root}}, nil
}

// Root implements [capability.Keys]. It finds a key that was added while the
// store is open.
func (t *TokenKeys) Root(id string, use func(key []byte)) error {
	t.mu.RLock()
	root, ok := t.roots[id]
	t.mu.RUnlock()
	if !ok {
		var err error
		if root, err = t.add(id); err != nil {
			return err
		}
	}
	return root.Use(use)
}

// add looks for a root key that was not there before. Anybody can make it
// look: it costs them a token of the right form, and us one failing open.
func (t *TokenKeys) add(id string) (*secret.Bytes, error) {
	if t.folder == "" {
		return nil, capability.ErrUnknownRoot
	}
	root, err := t.unseal(id) // not under the lock: a slow disk delays nobody else
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, backends.ErrMissing) {
		return nil, capability.ErrUnknownRoot
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if there, ok := t.roots[id]; ok {
		root.Destroy()
		return there, nil
	}
	t.roots[id] = root
	return root, nil
}

// Generation implements [capability.Revocations].
func (t *TokenKeys) Generation() uint64 {
	if t.revoked == nil {
		return 0
	}
	return t.revoked.Generation()
}

// Revoked implements [capability.Revocations].
func (t *TokenKeys) Revoked(s capability.Subject) bool {
	return t.revoked != nil && t.revoked.Revoked(s)
}

// ReloadRevoked reads the list of revocations at once; it is read every
// [capability.RevocationPoll] anyway. If it cannot be read, what was revoked
// before stays revoked.
func (t *TokenKeys) ReloadRevoked() error {
	if t.revoked == nil {
		return nil
	}
	return t.revoked.Reload()
}

// Problem is why the list of revocations cannot be read at present, nil if it
// can.
func (t *TokenKeys) Problem() error {
	if err := t.problem.Load(); err != nil {
		return *err
	}
	return nil
}

// Newest is the id of the key that new tokens are minted with: the last in
// order that is not retired, which for ids that are dates is the newest. It is
// "" if there is none.
func (t *TokenKeys) Newest() string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	newest := ""
	for id := range t.roots {
		if id > newest && !t.Revoked(capability.Subject{Root: id}) {
			newest = id
		}
	}
	return newest
}

// Close wipes the keys.
func (t *TokenKeys) Close() {
	if t.cancel != nil {
		t.cancel()
		t.watched.Wait()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.roots {
		r.Destroy()
	}
	t.seal.Destroy()
	if t.owned {
		t.arena.Close()
	}
}

// newTokenKeyID names a root key by the second it was made in.
func newTokenKeyID(now time.Time) string { return now.UTC().Format("20060102t150405z") }

// readRevoked reads a store's list of revocations for the first time.
func readRevoked(folder string) (*capability.RevocationList, error) {
	list, err := capability.NewRevocationList(func() ([]byte, error) { return readRevokedText(folder) })
	if err != nil {
		return nil, fmt.Errorf("tokens: %w: %w", backends.ErrTampered, err)
	}
	return list, nil
}

// readRevokedText gives fs.ErrNotExist if nothing was ever revoked.
func readRevokedText(folder string) ([]byte, error) {
	text, err := file.ReadPrivate(filepath.Join(folder, revokedFile), capability.MaxRevocationsBytes)
	if errors.Is(err, backends.ErrMissing) {
		return nil, fs.ErrNotExist
	}
	return text, err
}

// parseRevoked reads the list of revocations as it is now; both results are
// empty if nothing was ever revoked. A file that is empty is spoiled.
func parseRevoked(folder string) ([]byte, []capability.Revocation, error) {
	text, err := readRevokedText(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	list, err := capability.ParseRevocations(text)
	if err != nil {
		return nil, nil, fmt.Errorf("tokens: %w: %w", backends.ErrTampered, err)
	}
	return text, list, nil
}

// lockTokens lets one program at a time change what is in the folder of
// tokens. Reading needs no lock: each file is whole at any time.
func lockTokens(dir string) (folder string, unlock func(), err error) {
	folder = filepath.Join(dir, tokensDir)
	f, err := os.Open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("tokens: %w", backends.ErrMissing)
	}
	if err != nil {
		return "", nil, fmt.Errorf("tokens: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return "", nil, errors.Join(fmt.Errorf("tokens: %w", err), f.Close())
	}
	return folder, func() { _ = f.Close() }, nil // closing unlocks
}

// Revoke ends tokens of the store in dir: it is durable when Revoke returns,
// and counts in a running server within [capability.RevocationPoll]. It needs
// neither the passphrase nor a lock on the store. Revoking what is revoked
// does nothing.
func Revoke(dir string, r capability.Revocation) error {
	folder, unlock, err := lockTokens(dir)
	if err != nil {
		return openError(err)
	}
	defer unlock()
	return openError(revoke(folder, r))
}

func revoke(folder string, r capability.Revocation) error {
	text, list, err := parseRevoked(folder)
	if err != nil {
		return err
	}
	if slices.Contains(list, r) {
		return nil
	}
	next, err := capability.AppendRevocation(text, r)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	tmp, err := writeTemp(folder, next)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(folder, revokedFile)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return file.SyncDir(folder)
}

// A TokenRoot is one root key of a store, as [TokenRoots] lists them.
type TokenRoot struct {
	ID string
	// Newest is set for the key that new tokens are made with, Retired for one
	// whose tokens no longer count.
	Newest, Retired bool
}

// TokenRoots lists the root keys of the store in dir, and those that were
// retired, in the order of their ids. It needs no passphrase, and does not
// tell whether the keys can be opened.
func TokenRoots(dir string) ([]TokenRoot, error) {
	folder := filepath.Join(dir, tokensDir)
	ids, err := tokenKeyIDs(folder)
	if err != nil {
		return nil, openError(err)
	}
	_, list, err := parseRevoked(folder)
	if err != nil {
		return nil, openError(err)
	}
	retired := make(map[string]bool)
	for _, r := range list {
		if r.Root != "" {
			retired[r.Root] = true
			ids = append(ids, r.Root)
		}
	}
	slices.Sort(ids)
	var roots []TokenRoot
	newest := -1
	for _, id := range slices.Compact(ids) {
		if !retired[id] {
			newest = len(roots)
		}
		roots = append(roots, TokenRoot{ID: id, Retired: retired[id]})
	}
	if newest >= 0 {
		roots[newest].Newest = true
	}
	return roots, nil
}

// RotateTokenKeys makes a new root key in the store in dir and returns its id.
// From then on tokens are minted under it; those under older ones count until
// they expire or their root key is retired. A running server knows it at once.
func RotateTokenKeys(dir string, passphrase []byte) (id string, err error) {
	folder, unlock, err := lockTokens(dir)
	if err != nil {
		return "", openError(err)
	}
	defer unlock()
	keys, err := OpenTokenKeys(dir, passphrase)
	if err != nil {
		return "", err
	}
	defer keys.Close()
	roots, err := TokenRoots(dir)
	if err != nil {
		return "", err
	}
	last := ""
	if len(roots) > 0 {
		last = roots[len(roots)-1].ID // a retired id is not used again either
	}
	if id, err = nextTokenKeyID(last, time.Now()); err != nil {
		return "", openError(err)
	}
	return id, openError(writeTokenKey(folder, id, keys.seal, keys.arena))
}

// nextTokenKeyID makes an id that stands behind last, so that its key is the
// newest: by the time, or behind a name of this second or of a clock that went
// back, by a number.
func nextTokenKeyID(last string, now time.Time) (string, error) {
	id := newTokenKeyID(now)
	if id > last {
		return id, nil
	}
	base, number, numbered := strings.Cut(last, "-")
	n := 1
	if numbered {
		n, _ = strconv.Atoi(number)
	}
	if n < 1 || n > 8 || !capability.ValidRootID(base+"-2") {
		return "", errors.New("tokens: the clock is behind the newest root key")
	}
	return base + "-" + strconv.Itoa(n+1), nil
}

// RetireTokenKey ends all tokens under a root key of the store in dir, and then
// removes the key. It refuses the one that new tokens are made with: rotate
// first.
func RetireTokenKey(dir, id string) error {
	folder, unlock, err := lockTokens(dir)
	if err != nil {
		return openError(err)
	}
	defer unlock()
	roots, err := TokenRoots(dir)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(roots, func(r TokenRoot) bool { return r.ID == id })
	if at < 0 {
		return api.NewError(api.ReasonMalformed, "there is no root key of this id")
	}
	if roots[at].Newest {
		return api.NewError(api.ReasonMalformed, "new tokens are made with this root key: rotate first")
	}
	// First the line: without the key, but not retired, it would be unknown;
	// with both gone, a backup of the key would make its tokens good again.
	if err := revoke(folder, capability.Revocation{Root: id}); err != nil {
		return openError(err)
	}
	if err := os.Remove(filepath.Join(folder, id+tokenKeyExt)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return openError(fmt.Errorf("tokens: %w", err))
	}
	return openError(file.SyncDir(folder))
}
