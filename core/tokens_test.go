package core_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// listing is what a session that counts can do.
func listing(k *core.KMS, s *core.Session) error {
	_, err := Do[api.ListResponse](k, s, "list", &api.ListRequest{Tenant: "acme"})
	return err
}

// A root key that is made while the store is open counts at once, beside the
// older ones, and is the one to mint with. R-020
func TestRotateTokenKeys(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	old := Session(t, k, "acme")
	var ids []string
	for range 3 { // within one second
		id, err := core.RotateTokenKeys(cfg.Dir, []byte(Passphrase))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if !slices.IsSorted(ids) || ids[0] <= report.TokenRootID || slices.ContainsFunc(ids, func(id string) bool { return !capability.ValidRootID(id) }) {
		t.Errorf("ids %q after %s", ids, report.TokenRootID)
	}
	keys, err := core.OpenTokenKeys(cfg.Dir, []byte(Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if keys.Newest() != ids[2] {
		t.Errorf("newest is %s, want %s", keys.Newest(), ids[2])
	}
	s, err := k.OpenSession(TokenFrom(t, keys, k.Now().Add(time.Hour), "acme", nil))
	if err != nil {
		t.Fatalf("a token of the new root key: %v", err)
	}
	for name, s := range map[string]*core.Session{"new": s, "old": old, "old again": Session(t, k, "acme")} {
		if err := listing(k, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := core.RotateTokenKeys(cfg.Dir, []byte("wrong")); err == nil {
		t.Error("rotated with a wrong passphrase")
	}
	roots, err := core.TokenRoots(cfg.Dir)
	if err != nil || len(roots) != 4 || !roots[3].Newest || roots[0].Newest || roots[0].Retired {
		t.Errorf("roots %+v %v", roots, err)
	}
	if k = reopen(t, k); k.TokenKeys().Newest() != ids[2] {
		t.Errorf("after opening again the newest is %s", k.TokenKeys().Newest())
	}
	if names, err := filepath.Glob(filepath.Join(cfg.Dir, "tokens", ".new-*")); err != nil || len(names) != 0 {
		t.Errorf("left behind: %q %v", names, err)
	}
}

// Retiring a root key ends its tokens in open sessions too, and for good.
func TestRetireTokenKey(t *testing.T) {
	t.Parallel()
	cfg, report, k := store(t)
	path := filepath.Join(cfg.Dir, "tokens", report.TokenRootID+".key")
	backup, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token := Token(t, k, "acme", nil)
	s := Session(t, k, "acme")
	if err := core.RetireTokenKey(cfg.Dir, report.TokenRootID); err == nil || !strings.Contains(err.Error(), "rotate first") {
		t.Errorf("the newest was retired: %v", err)
	}
	if err := core.RetireTokenKey(cfg.Dir, "nobody"); err == nil {
		t.Error("a key that is not there was retired")
	}
	if err := listing(k, s); err != nil {
		t.Fatal(err)
	}
	id, err := core.RotateTokenKeys(cfg.Dir, []byte(Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finishes what a crash may have left
		if err := core.RetireTokenKey(cfg.Dir, report.TokenRootID); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.TokenKeys().ReloadRevoked(); err != nil {
		t.Fatal(err)
	}
	if err := listing(k, s); err == nil {
		t.Error("an open session goes on")
	}
	if _, err := k.OpenSession(token); err == nil {
		t.Error("a token of the retired root key opens a session")
	}
	if k.TokenKeys().Newest() == report.TokenRootID {
		t.Error("the retired root key is still minted with")
	}
	if roots, err := core.TokenRoots(cfg.Dir); err != nil || !slices.Equal(roots, []core.TokenRoot{{ID: report.TokenRootID, Retired: true}, {ID: id, Newest: true}}) {
		t.Errorf("roots %+v %v", roots, err)
	}
	// Not even putting its file back makes it count.
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	k = reopen(t, k)
	if _, err := k.OpenSession(token); err == nil {
		t.Error("a root key from a backup counts")
	}
	if err := listing(k, Session(t, k, "acme")); err != nil {
		t.Errorf("a token of the new root key: %v", err)
	}
}

// Revoking a token or a tenant's tokens counts in a running server within five
// seconds, for sessions that are open, and for nobody else.
func TestRevokeInARunningServer(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s, narrow, other := Session(t, k, "acme"), Token(t, k, "acme", []string{capability.ScopeRead}), Session(t, k, "globex")
	info, err := capability.Inspect(narrow)
	if err != nil {
		t.Fatal(err)
	}
	n, err := k.OpenSession(narrow)
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Revoke(cfg.Dir, capability.Revocation{Token: info.ID}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for listing(k, n) == nil {
		if time.Now().After(deadline) {
			t.Fatal("five seconds later the token still counts")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := k.OpenSession(narrow); err == nil {
		t.Error("the token opens another session")
	}
	if err := listing(k, s); err != nil {
		t.Errorf("another token of the tenant: %v", err)
	}
	if err := core.Revoke(cfg.Dir, capability.Revocation{Tenant: "acme", Before: time.Now().Unix() + 1}); err != nil {
		t.Fatal(err)
	}
	if err := k.TokenKeys().ReloadRevoked(); err != nil {
		t.Fatal(err)
	}
	if err := listing(k, s); err == nil {
		t.Error("a token of the tenant still counts")
	}
	if _, err := Do[api.ListResponse](k, other, "list", &api.ListRequest{Tenant: "globex"}); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	k = reopen(t, k)
	if _, err := k.OpenSession(narrow); err == nil {
		t.Error("after opening again the token counts")
	}
}

// A list that was spoiled or taken away ends what it ended before, and the
// server says so; no store opens with a spoiled one.
func TestSpoiledRevocations(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	token := Token(t, k, "acme", nil)
	info, err := capability.Inspect(token)
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Revoke(cfg.Dir, capability.Revocation{Token: info.ID}); err != nil {
		t.Fatal(err)
	}
	if err := k.TokenKeys().ReloadRevoked(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "tokens", "revoked")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"removed":         func() error { return os.Remove(path) },
		"emptied":         func() error { return os.Truncate(path, 0) },
		"cut off":         func() error { return os.Truncate(path, int64(len(good)-1)) },
		"others may read": func() error { return os.Chmod(path, 0o644) },
		"a link": func() error {
			return errAll(os.Rename(path, path+".away"), os.Symlink(path+".away", path))
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if err := k.TokenKeys().ReloadRevoked(); err == nil {
			t.Errorf("%s: not reported", name)
		}
		if _, err := k.OpenSession(token); err == nil {
			t.Errorf("%s: the token counts again", name)
		}
		if name != "removed" {
			if err := core.Revoke(cfg.Dir, capability.Revocation{Root: "demo"}); err == nil {
				t.Errorf("%s: added to", name)
			}
			if keys, err := core.OpenTokenKeys(cfg.Dir, []byte(Passphrase)); err == nil {
				keys.Close()
				t.Errorf("%s: opened", name)
			}
		}
		_ = os.Remove(path)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.TokenKeys().ReloadRevoked(); err != nil {
			t.Errorf("%s, and put right: %v", name, err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	if err := os.Truncate(path, 3); err != nil {
		t.Fatal(err)
	}
	for k.TokenKeys().Problem() == nil {
		if time.Now().After(deadline) {
			t.Fatal("nobody noticed")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Many who revoke and rotate at once lose nothing of one another.
func TestRevokeAtOnce(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	k.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := capability.Revocation{Token: "cap:000000000000000" + string(rune('0'+i))}
			for range 2 { // the second time changes nothing
				if err := core.Revoke(cfg.Dir, r); err != nil {
					t.Errorf("revoke: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		if _, err := core.RotateTokenKeys(cfg.Dir, []byte(Passphrase)); err != nil {
			t.Errorf("rotate: %v", err)
		}
	})
	wg.Wait()
	text, err := os.ReadFile(filepath.Join(cfg.Dir, "tokens", "revoked"))
	if err != nil {
		t.Fatal(err)
	}
	if list, err := capability.ParseRevocations(text); err != nil || len(list) != 8 {
		t.Errorf("%d revocations: %v", len(list), err)
	}
	if roots, err := core.TokenRoots(cfg.Dir); err != nil || len(roots) != 2 {
		t.Errorf("roots %+v %v", roots, err)
	}
	for name, err := range map[string]error{
		"revoke": core.Revoke(t.TempDir(), capability.Revocation{Root: "demo"}), "retire": core.RetireTokenKey(t.TempDir(), "demo"),
		"nothing": core.Revoke(cfg.Dir, capability.Revocation{}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
