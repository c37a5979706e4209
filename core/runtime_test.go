package core_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// Amnesia: everything works and nothing is written, wherever a program might
// put files; the mode is stated..
func TestAmnesiaWritesNothing(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"cwd", "home", "tmp", "cache"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(root, "cwd"))
	t.Setenv("HOME", filepath.Join(root, "home"))
	t.Setenv("TMPDIR", filepath.Join(root, "tmp"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(root, "cache"))
	k := Amnesia(t)
	if r := k.Ready(); !r.Ready || r.Mode != "amnesia" || r.Backend != "inmem" {
		t.Errorf("ready: %+v", r)
	}
	s := Session(t, k, "acme")
	for _, name := range algorithms {
		kid := Create(t, k, s, name).KID
		Rotate(t, k, s, kid)
		sig := Sign(t, k, s, strings.TrimSuffix(kid, "#v1"), Digest(1))
		if !Verify(t, k, s, Digest(1), sig.Sigs).OK || sig.Receipt == nil {
			t.Error("amnesia does not work")
		}
		Destroy(t, k, s, strings.TrimSuffix(kid, "#v1"))
	}
	// No file is open for writing either: one could be unlinked already.
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && (strings.HasPrefix(to, root) || strings.HasSuffix(to, "(deleted)") && strings.Contains(to, "ron-kms")) {
			t.Errorf("%s is open", to)
		}
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if info.Mode().IsRegular() {
			t.Errorf("%s was written", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// Two amnesias share nothing.
	again := Amnesia(t)
	if n := len(Must[api.ListResponse](t, again, Session(t, again, "acme"), "list", &api.ListRequest{Tenant: "acme"}).Keys); n != 0 {
		t.Errorf("%d keys are remembered", n)
	}
}

// The durable mode says so too, and a store cannot be made where nothing may
// be written. R-102.
func TestModeIsExplicit(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	if r := k.Ready(); !r.Ready || r.Mode != "durable" || r.Backend != "file" || len(r.Missing) != 0 {
		t.Errorf("ready: %+v", r)
	}
	yes := true
	for name, change := range map[string]func(*config.Config){
		"file that forgets":    func(c *config.Config) { c.Amnesia = &yes },
		"inmem with a folder":  func(c *config.Config) { c.Backend = config.BackendInmem },
		"inmem that remembers": func(c *config.Config) { no := false; c.Backend, c.Dir, c.Amnesia = config.BackendInmem, "", &no },
	} {
		cfg := Config(t)
		change(cfg)
		if k, err := core.Open(context.Background(), cfg, core.Options{}); !api.HasReason(err, api.ReasonConfig) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				k.Close()
			}
		}
		if _, err := core.Init(context.Background(), cfg, []byte("p"), core.InitOptions{}); !api.HasReason(err, api.ReasonConfig) {
			t.Errorf("init, %s: %v", name, err)
		}
	}
}

// What callers send shows in no log line, error text or metric: not their
// payloads and contexts, not tokens, and in logs and errors no names either.
//
func TestCanaries(t *testing.T) {
	t.Parallel()
	var logs bytes.Buffer
	cfg := Config(t)
	Init(t, cfg)
	k := Open(t, cfg, core.Options{Logger: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	const canary = "canaryXq7"
	s := Session(t, k, canary)
	var errs strings.Builder
	ctx := context.Background()
	note := func(b []byte, err error) []byte {
		if err != nil {
			env, _ := json.Marshal(api.AsError(err).Envelope("r", k.Now()))
			fmt.Fprintln(&errs, err, api.AsError(err).Hint, string(env))
		}
		return b
	}
	call := func(verb string, req any) []byte {
		b, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		return note(k.Call(ctx, s, verb, b))
	}
	digest := strings.Repeat("ca9a", 16)
	secretContext := api.FormatBase64([]byte("context-" + canary))
	opID := uuid.NewString()
	call("create", api.CreateRequest{OpID: opID, Tenant: canary, Purpose: canary, Alg: "ed25519"})
	call("create", api.CreateRequest{OpID: opID, Tenant: canary, Purpose: canary + "2", Alg: "ed25519"})
	call("create", api.CreateRequest{OpID: canary, Tenant: canary, Purpose: canary, Alg: canary})
	call("create", api.CreateRequest{OpID: uuid.NewString(), Tenant: canary, Purpose: canary, Alg: canary})
	call("create", api.CreateRequest{OpID: uuid.NewString(), Tenant: canary + "/../", Purpose: canary, Alg: "ed25519"})
	call("create", api.CreateRequest{OpID: uuid.NewString(), Tenant: "other", Purpose: canary, Alg: "ed25519", Policy: &api.KeyPolicy{VerifyMode: canary}})
	kid := canary + "/" + canary + "/ed25519/" + uuid.NewString()
	call("sign", api.SignRequest{KID: kid, PayloadB3: digest, ContextB64: secretContext})
	call("sign", api.SignRequest{KID: kid + "#v" + canary, PayloadB3: digest})
	call("sign", api.SignRequest{KID: kid, PayloadB3: canary})
	call("sign", api.SignRequest{KID: kid, PayloadB3: digest, ContextB64: canary + "!"})
	call("sign", api.SignRequest{KID: "other/" + canary + "/ed25519/" + uuid.NewString(), PayloadB3: digest, Alg: canary})
	call("verify", api.VerifyRequest{PayloadB3: digest, Sigs: []api.Signature{{KID: kid + "#v1", Alg: canary, SignatureB64: canary}}})
	call("export", api.ExportRequest{KID: kid})
	call(canary, struct{}{})
	note(k.Call(ctx, s, "create", []byte(`{"`+canary+`":"`+canary+`"}`)))
	note(k.Call(ctx, s, "create", []byte(canary)))
	token := Token(t, k, canary, nil)
	for _, bad := range []string{canary, token[:len(token)-8] + "AAAAAAAA", token + "A"} {
		if _, err := k.OpenSession(bad); err == nil {
			t.Error("a bad token opened a session")
		} else {
			note(nil, err)
		}
	}
	k.Close()
	note(k.Call(ctx, s, "list", []byte(`{"tenant":"`+canary+`"}`)))

	// A store that alarms logs its reasons: without names.
	records(t, cfg.Dir, recordsCorruptKeys)
	k2 := Open(t, cfg, core.Options{Logger: slog.New(slog.NewTextHandler(&logs, nil))})
	if k2.Ready().Ready || !strings.Contains(logs.String(), "integrity") {
		t.Error("the damage was not logged")
	}
	if errs.Len() < 500 {
		t.Errorf("few errors to look at: %s", errs.String())
	}
	for _, secret := range []string{canary, secretContext, digest, token, token[:40]} {
		if strings.Contains(logs.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, logs.String())
		}
		if strings.Contains(errs.String(), secret) {
			t.Errorf("%q is in an error:\n%s", secret, errs.String())
		}
	}
	w := httptest.NewRecorder()
	k.Metrics().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range strings.Split(w.Body.String(), "\n") {
		// kms_keys_total alone has tenant and purpose as labels: of keys that
		// are there, not of requests.
		if strings.Contains(line, canary) && !strings.HasPrefix(line, "kms_keys_total{") {
			t.Errorf("metrics: %s", line)
		}
		for _, secret := range []string{secretContext, digest, token[:40], canary + "2"} {
			if strings.Contains(line, secret) {
				t.Errorf("metrics: %s", line)
			}
		}
	}
}

// Rotations racing signatures: heads grow by one, every signature that left
// verifies, and once a rotation has returned no later signature is by an older
// version..
func TestRotateRacesSign(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	kid := strings.TrimSuffix(Create(t, k, s, "hybrid").KID, "#v1")
	var head atomic.Uint32 // of the last rotation that returned
	head.Store(1)
	const rotations = 30
	var done atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			last := uint32(0)
			for i := 0; !done.Load() || i < 5; i++ {
				least := head.Load()
				r, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(byte(i))})
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
				id, err := api.ParseKID(r.KID)
				if err != nil || id.Version < least || id.Version < last {
					t.Errorf("signed by version %d after a rotation to %d had returned", id.Version, max(least, last))
				}
				last = id.Version
				if !Verify(t, k, s, Digest(byte(i)), r.Sigs).OK {
					t.Errorf("a signature by version %d does not verify", id.Version)
				}
			}
		})
	}
	for n := uint32(2); n <= rotations; n++ {
		if got := Rotate(t, k, s, kid).Key.Head; got != n {
			t.Errorf("rotated to %d, want %d", got, n)
		}
		head.Store(n)
	}
	done.Store(true)
	wg.Wait()
}

// Rotations racing wraps, rewraps and unwraps: envelopes name versions that only
// grow, none is older than a rotation that had returned, and all open. R-404.
func TestRotateRacesWrap(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	for _, name := range []string{"aes-256-gcm", "x25519+ml-kem-768"} {
		kid := Base(Create(t, k, s, name).KID)
		var head atomic.Uint32 // of the last rotation that returned
		head.Store(1)
		var done atomic.Bool
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				last := uint32(0)
				for i := 0; !done.Load() || i < 3; i++ {
					least := head.Load()
					w, err := Do[api.WrapResponse](k, s, "wrap", &api.WrapRequest{KID: kid, Size: 32})
					if err != nil {
						t.Error(err)
						return
					}
					r, err := Do[api.RewrapResponse](k, s, "rewrap", &api.RewrapRequest{KID: kid, WrappedB64: w.WrappedB64})
					if err != nil {
						t.Error(err)
						return
					}
					for _, by := range []string{w.KID, r.KID} {
						id, err := api.ParseKID(by)
						if err != nil || id.Version < least || id.Version < last {
							t.Errorf("wrapped to version %d after a rotation to %d had returned", id.Version, max(least, last))
						}
						last = id.Version
					}
					for _, envelope := range []string{w.WrappedB64, r.WrappedB64} {
						u, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: kid, WrappedB64: envelope})
						if err != nil || u.PlaintextKeyB64 != w.PlaintextKeyB64 {
							t.Errorf("an envelope does not open: %v", err)
						}
					}
				}
			})
		}
		for n := uint32(2); n <= 12; n++ {
			if got := Rotate(t, k, s, kid).Key.Head; got != n {
				t.Errorf("rotated to %d, want %d", got, n)
			}
			head.Store(n)
		}
		done.Store(true)
		wg.Wait()
	}
}

// Destroying while signing: once destroy has returned nothing signs.
func TestDestroyRacesSign(t *testing.T) {
	t.Parallel()
	_, _, k := store(t)
	s := Session(t, k, "acme")
	for range 5 {
		kid := strings.TrimSuffix(Create(t, k, s, "ml-dsa-65").KID, "#v1")
		var destroyed atomic.Bool
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					before := destroyed.Load()
					_, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1)})
					if err != nil {
						if Code(err) != api.CodeKeyDestroyed {
							t.Error(err)
						}
						return
					}
					if before {
						t.Error("a destroyed key signed")
						return
					}
				}
			})
		}
		Sign(t, k, s, kid, Digest(2))
		Destroy(t, k, s, kid)
		destroyed.Store(true)
		wg.Wait()
	}
}

// Close lets running calls finish, refuses later ones, and what it let finish
// is durable. R-130.
func TestCloseDrains(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kid := strings.TrimSuffix(Create(t, k, s, "ed25519").KID, "#v1")
	var mu sync.Mutex
	created := make(map[string]bool)
	var wg sync.WaitGroup
	var started atomic.Int64
	for w := range 6 {
		wg.Go(func() {
			for i := 0; ; i++ {
				started.Add(1)
				var err error
				if (w+i)%2 == 0 {
					var c *api.CreateResponse
					c, err = Do[api.CreateResponse](k, s, "create", request("create", kid).(*api.CreateRequest))
					if err == nil {
						mu.Lock()
						created[c.KID] = true
						mu.Unlock()
					}
				} else {
					_, err = Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: Digest(1)})
				}
				if err != nil {
					if !api.HasReason(err, api.ReasonClosed) {
						t.Errorf("beside Close: %v", err)
					}
					return
				}
			}
		})
	}
	for started.Load() < 60 {
		k.Ready()
	}
	for range 3 {
		wg.Go(func() {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if r := k.Ready(); r.Ready || r.Verify || r.Reason != string(api.ReasonClosed) {
		t.Errorf("ready after Close: %+v", r)
	}
	for _, verb := range core.Verbs() {
		if _, err := k.Do(context.Background(), s, verb, request(verb.Name, kid+"#v1")); !api.HasReason(err, api.ReasonClosed) {
			t.Errorf("%s after Close: %v", verb.Name, err)
		}
	}
	if _, err := k.OpenSession("x"); !api.HasReason(err, api.ReasonClosed) {
		t.Errorf("a session after Close: %v", err)
	}
	k = Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Fatalf("%+v", r)
	}
	keys := Must[api.ListResponse](t, k, Session(t, k, "acme"), "list", &api.ListRequest{Tenant: "acme", Limit: 500}).Keys
	if len(keys) != len(created)+1 {
		t.Errorf("%d keys, %d were acknowledged", len(keys), len(created)+1)
	}
}
