package core

import (
	"context"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
	"github.com/rustyonions/ron-kms/core/api"
)

// While the disk of the log is full, what uses a private key answers 503 before it does anything, health says so, and verify goes
// on; when there is space again everything does, without a restart, and what was acknowledged is in the log. Not parallel: it replaces how
// logs are opened..
func TestAuditDiskFull(t *testing.T) {
	var full atomic.Bool
	was := openAuditDir
	t.Cleanup(func() { openAuditDir = was })
	openAuditDir = func(ctx context.Context, dir string, o audit.Options) (*audit.Log, error) {
		d, err := fsys.Open(dir)
		if err != nil {
			return nil, err
		}
		return audit.OpenDir(ctx, fsystest.Faulty{Dir: d, Fail: func(op, name string) error {
			more := op == "create" && strings.HasSuffix(name, fsys.TmpSuffix) || op == "write" && !strings.HasPrefix(name, "seg-") && name != "head"
			if full.Load() && more {
				return syscall.ENOSPC
			}
			return nil
		}}, o)
	}
	cfg := crashConfig(t)
	cfg.AuditSegmentSize, cfg.AuditRingSegments = 64<<10, 5
	if _, err := Init(context.Background(), cfg, []byte(crashPassphrase), InitOptions{WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	k, s := crashOpen(t, cfg)
	made, err := crashDo(k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	kid := made.(*api.CreateResponse).KID
	sign := func() (*api.SignResponse, error) {
		r, err := crashDo(k, s, "sign", &api.SignRequest{KID: kid, PayloadB3: digest1})
		if err != nil {
			return nil, err
		}
		return r.(*api.SignResponse), nil
	}
	signed, err := sign()
	if err != nil {
		t.Fatal(err)
	}
	verifies := func() {
		t.Helper()
		r, err := crashDo(k, s, "verify", &api.VerifyRequest{PayloadB3: digest1, Sigs: signed.Sigs})
		if err != nil || !r.(*api.VerifyResponse).OK {
			t.Errorf("verify: %v, %v", r, err)
		}
	}
	acked := uint64(1)
	full.Store(true)
	for err = nil; err == nil && acked < 5000; {
		if _, err = sign(); err == nil {
			acked++
		}
	}
	if e := api.AsError(err); err == nil || e.Reason != api.ReasonAuditFull || e.Code != api.CodeStoreUnavailable || !e.Retryable {
		t.Fatalf("after %d signatures: %v", acked, err)
	}
	if r := k.Ready(); r.Ready || !r.Verify || r.Reason != string(api.ReasonAuditFull) {
		t.Errorf("ready: %+v", r)
	}
	verifies()
	if _, err := crashDo(k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: kid}); !api.HasReason(err, api.ReasonAuditFull) {
		t.Errorf("rotate: %v", err)
	}
	full.Store(false)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err = sign(); err == nil {
			acked++
			break
		}
		if !api.HasReason(err, api.ReasonAuditFull) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if r := k.Ready(); !r.Ready {
		t.Errorf("ready: %+v", r)
	}
	verifies()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	full.Store(false)
	k, _ = crashOpen(t, cfg)
	if r := k.Ready(); !r.Ready {
		t.Errorf("after a restart: %+v", r)
	}
	found := uint64(0)
	if err := k.audit.Read(context.Background(), 0, func(_ uint64, r *audit.Record) error {
		if r.Op == "sign" && r.Result == resultOK {
			found++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if found != acked {
		t.Errorf("%d signatures on record, %d acknowledged", found, acked)
	}
}
