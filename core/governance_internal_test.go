package core

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// governed opens a store in memory with the given files.
func governed(t *testing.T, edit func(*config.Config)) (*KMS, *Session) {
	t.Helper()
	cfg := config.Default()
	cfg.Backend, cfg.ArenaSize = config.BackendInmem, 1<<20
	edit(cfg)
	k, err := Open(context.Background(), cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, crashSession(t, k)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A policy file forbids one purpose and allows the rest; a new file counts after a reload, and one that is not valid changes nothing.
//
func TestPolicyFileGoverns(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "policy.json")
	const deny = `{"version":1,"defaults":{"default_action":"allow"},"rules":[{"id":"no-tests","when":{"method":"KMS:CREATE","require_tags_all":["purpose:test"]},"action":"deny","reason":"no tests here"}]}`
	write(t, file, deny)
	k, s := governed(t, func(c *config.Config) { c.PolicyFile = file })
	create := func(purpose string) error {
		_, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: purpose, Alg: "ed25519"})
		return err
	}
	if err := create("release"); err != nil {
		t.Fatal(err)
	}
	if err := create("test"); !api.HasReason(err, api.ReasonPolicy) {
		t.Errorf("denied purpose: %v", err)
	}
	write(t, file, `{"version":1,"rules":`)
	if err := k.Reload(); !api.HasReason(err, api.ReasonConfig) {
		t.Errorf("half a file: %v", err)
	}
	if err := create("test"); !api.HasReason(err, api.ReasonPolicy) {
		t.Errorf("after half a file: %v", err)
	}
	write(t, file, `{"version":2,"defaults":{"default_action":"allow"},"rules":[]}`)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := create("test"); err != nil {
		t.Errorf("after the rule went: %v", err)
	}
}

// A policy service that does not answer stops private operations and not verification..
func TestPolicyServiceDown(t *testing.T) {
	t.Parallel()
	k, s := governed(t, func(c *config.Config) { c.PolicyURL = "http://127.0.0.1:1" })
	_, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	if !api.HasReason(err, api.ReasonPolicyDown) || !api.AsError(err).Retryable {
		t.Errorf("create: %v", err)
	}
	r, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: []api.Signature{{
		KID: "acme/test/ed25519/7f000000-0000-4000-8000-000000000001#v1", Alg: "ed25519", SignatureB64: "AA==",
	}}})
	if err == nil && r.(*api.VerifyResponse).OK || err != nil && api.HasReason(err, api.ReasonPolicyDown) {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// A tenant over its rate is refused before anything else, with the time to wait; raising the limit takes effect without a restart..
func TestLimitsGovern(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "limits.json")
	write(t, file, `{"tenants":{"acme":{"rate":0.01,"burst":25}}}`)
	k, s := governed(t, func(c *config.Config) { c.LimitsFile = file })
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	sign := func() error {
		_, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1})
		return err
	}
	signed := 0
	for err = nil; err == nil && signed < 100; signed++ {
		err = sign()
	}
	e := api.AsError(err)
	if e == nil || e.Reason != api.ReasonBackpressure || e.RetryAfter < time.Second || signed < 10 || signed > 20 {
		t.Fatalf("after %d signatures: %v, retry after %v", signed, err, e.RetryAfter)
	}
	write(t, file, `{"tenants":{"acme":{"rate":1000000,"burst":1000000}}}`)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); sign() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still refused")
		}
	}
	write(t, file, `{"tenants":{"acme":{"rate":-1}}}`)
	if err := k.Reload(); !api.HasReason(err, api.ReasonConfig) {
		t.Errorf("a negative rate: %v", err)
	}
	if err := sign(); err != nil {
		t.Errorf("after it: %v", err)
	}
}
