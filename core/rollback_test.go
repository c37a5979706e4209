package core_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// drill is a store with a past: the folder as it was after a first session,
// and as it is after a second one, which changed and added keys.
type drill struct {
	then, now  string
	first      string // a kid of the first session, rotated in the second
	sigs       []api.Signature
	destroyed  string // created in the first, destroyed in the second
	createOpID string // of first
}

func newDrill(t *testing.T) *drill {
	t.Helper()
	cfg, _, k := store(t)
	d := &drill{now: cfg.Dir, then: filepath.Join(t.TempDir(), "then"), createOpID: uuid.NewString()}
	s := Session(t, k, "acme")
	d.first = Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{OpID: d.createOpID, Tenant: "acme", Purpose: "test", Alg: "hybrid"}).KID
	d.sigs = Sign(t, k, s, d.first, Digest(1)).Sigs
	d.destroyed = Create(t, k, s, "ed25519").KID
	k.Close()
	Copy(t, d.now, d.then)
	k = Open(t, cfg, core.Options{})
	s = Session(t, k, "acme")
	Rotate(t, k, s, d.first)
	Create(t, k, s, "ed25519")
	Destroy(t, k, s, strings.TrimSuffix(d.destroyed, "#v1"))
	for i := range 20 {
		Sign(t, k, s, strings.TrimSuffix(d.first, "#v1"), Digest(byte(i)))
	}
	k.Close()
	return d
}

// records changes the records of a keys.db behind the engine's back.
func records(t *testing.T, dir string, fn func(tx *bbolt.Tx, b *bbolt.Bucket) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "keys.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error { return fn(tx, tx.Bucket([]byte("records"))) }); err != nil {
		t.Fatal(err)
	}
}

// record reads one record of a keys.db.
func record(t *testing.T, dir, name string) (value []byte) {
	t.Helper()
	records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error {
		value = bytes.Clone(b.Get([]byte(name)))
		return nil
	})
	if value == nil {
		t.Fatalf("no record %s", name)
	}
	return value
}

// splice takes one record from the past into the present.
func splice(t *testing.T, from, to, name string) {
	t.Helper()
	old := record(t, from, name)
	records(t, to, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte(name), old) })
}

func replace(t *testing.T, from, to, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(to, name)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(from, name)); err == nil && st.IsDir() {
		Copy(t, filepath.Join(from, name), filepath.Join(to, name))
		return
	}
	data, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever part of a store is put back to an older state, removed or changed:
// the store opens, alarms, refuses all use of private keys, and goes on
// verifying with what is authentic; and so it does the next time.
//
func TestRollbackDrills(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	base := strings.TrimSuffix(d.first, "#v1")
	for _, c := range []struct {
		name   string
		harm   func(t *testing.T, dir string)
		reason api.Reason
		part   string
		blind  bool // the first key itself is gone or not authentic: verify answers, and says unknown
	}{
		{"old keys.db", func(t *testing.T, dir string) { replace(t, d.then, dir, "keys.db") }, api.ReasonStoreTampered, "store_ready", false},
		{"old log", func(t *testing.T, dir string) { replace(t, d.then, dir, "audit") }, api.ReasonStoreTampered, "store_ready", false},
		{"no log", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "audit")); err != nil {
				t.Fatal(err)
			}
		}, api.ReasonAudit, "audit_ready", false},
		{"no segment", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "audit", "seg-00000000")); err != nil {
				t.Fatal(err)
			}
		}, api.ReasonAudit, "audit_ready", false},
		{"last commit of the log zeroed", func(t *testing.T, dir string) { cutLog(t, dir, 1) }, api.ReasonAudit, "audit_ready", false},
		{"last ten commits of the log zeroed", func(t *testing.T, dir string) { cutLog(t, dir, 10) }, api.ReasonAudit, "audit_ready", false},
		{"a bit of the log", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "audit", "seg-00000000")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[600] ^= 1
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, api.ReasonAudit, "audit_ready", false},
		{"key record deleted", func(t *testing.T, dir string) {
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Delete([]byte("key/" + base)) })
		}, api.ReasonStoreTampered, "store_ready", true},
		{"old key record", func(t *testing.T, dir string) { splice(t, d.then, dir, "key/"+base) }, api.ReasonStoreTampered, "store_ready", false},
		{"destroyed key put back", func(t *testing.T, dir string) {
			splice(t, d.then, dir, "key/"+strings.TrimSuffix(d.destroyed, "#v1"))
		}, api.ReasonStoreTampered, "store_ready", false},
		{"old key record with old head", func(t *testing.T, dir string) {
			splice(t, d.then, dir, "key/"+base)
			splice(t, d.then, dir, "head")
		}, api.ReasonStoreTampered, "store_ready", false},
		{"op record deleted", func(t *testing.T, dir string) {
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Delete([]byte("op/acme/create/" + d.createOpID)) })
		}, api.ReasonStoreTampered, "store_ready", false},
		{"op record under another name", func(t *testing.T, dir string) {
			v := record(t, dir, "op/acme/create/"+d.createOpID)
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("op/acme/create/"+uuid.NewString()), v) })
		}, api.ReasonStoreTampered, "store_ready", false},
		{"key record under another name", func(t *testing.T, dir string) {
			v := record(t, dir, "key/"+base)
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error {
				return b.Put([]byte("key/evil/test/ed25519+ml-dsa-65/"+uuid.NewString()), v)
			})
		}, api.ReasonStoreTampered, "store_ready", false},
		{"record of an unknown kind", func(t *testing.T, dir string) {
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("more"), []byte("x")) })
		}, api.ReasonStoreTampered, "store_ready", false},
		{"key record changed", func(t *testing.T, dir string) {
			v := record(t, dir, "key/"+base)
			v[len(v)-3] ^= 1
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("key/"+base), v) })
		}, api.ReasonStoreTampered, "store_ready", true},
		{"key record of another revision", func(t *testing.T, dir string) {
			v := record(t, dir, "key/"+base)
			binary.BigEndian.PutUint64(v[1:], binary.BigEndian.Uint64(v[1:])+1)
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("key/"+base), v) })
		}, api.ReasonStoreTampered, "store_ready", true},
		{"head deleted", func(t *testing.T, dir string) {
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Delete([]byte("head")) })
		}, api.ReasonStoreTampered, "store_ready", false},
		{"revision changed", func(t *testing.T, dir string) {
			records(t, dir, func(tx *bbolt.Tx, _ *bbolt.Bucket) error {
				return tx.Bucket([]byte("meta")).Put([]byte("revision"), binary.BigEndian.AppendUint64(nil, 99))
			})
		}, api.ReasonStoreTampered, "store_ready", false},
		{"attestation key deleted", func(t *testing.T, dir string) {
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Delete([]byte("system/attestation-key")) })
		}, api.ReasonStoreTampered, "store_ready", false},
		{"frame key changed", func(t *testing.T, dir string) {
			v := record(t, dir, "system/audit-frames")
			v[60] ^= 1
			records(t, dir, func(_ *bbolt.Tx, b *bbolt.Bucket) error { return b.Put([]byte("system/audit-frames"), v) })
		}, api.ReasonStoreTampered, "store_ready", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := *Config(t)
			Copy(t, d.now, cfg.Dir)
			c.harm(t, cfg.Dir)
			for range 2 { // the alarm does not wear off
				k := Open(t, &cfg, core.Options{})
				alarmed(t, k, d, c.reason, c.part, c.blind)
				k.Close()
			}
		})
	}
}

// alarmed checks a KMS that knows that something is wrong.
func alarmed(t *testing.T, k *core.KMS, d *drill, reason api.Reason, part string, blind bool) {
	t.Helper()
	r := k.Ready()
	if r.Ready || !r.Verify || r.Reason != string(reason) || len(r.Missing) != 1 || r.Missing[0] != part {
		t.Fatalf("ready says %+v, want %s %s", r, reason, part)
	}
	if n := metric(t, k, "kms_audit_integrity_failed_total"); n < 1 {
		t.Error("kms_audit_integrity_failed_total is 0")
	}
	s := Session(t, k, "acme")
	for _, verb := range []string{"create", "rotate", "destroy", "sign"} {
		v, _ := core.VerbNamed(verb)
		if resp, err := k.Do(context.Background(), s, v, request(verb, d.first)); Code(err) != api.CodeAuditIntegrity || resp != nil {
			t.Errorf("%s: %v, want AuditIntegrity", verb, err)
		}
	}
	v := Verify(t, k, s, Digest(1), d.sigs)
	if blind {
		if v.OK || v.Details.Reason != "unknown-key" {
			t.Errorf("verify with a key record that is not authentic: %+v", v)
		}
	} else if !v.OK {
		t.Errorf("verify does not go on: %+v", v)
	}
	if Verify(t, k, s, Digest(2), d.sigs).OK {
		t.Error("a wrong signature verifies")
	}
}

// cutLog zeroes the last n frames of the log's only segment: somebody deleted
// the last records.
func cutLog(t *testing.T, dir string, n int) {
	t.Helper()
	path := filepath.Join(dir, "audit", "seg-00000000")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var starts []int
	for at := 0; at < len(data) && string(data[at:at+4]) == "RKAF"; {
		starts = append(starts, at)
		at += int(binary.BigEndian.Uint32(data[at+8:]))
	}
	if len(starts) <= n {
		t.Fatalf("the log has %d frames", len(starts))
	}
	clear(data[starts[len(starts)-n]:])
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A whole folder put back is a healthy older store: nothing on this disk can
// tell. Only a memory elsewhere can, such as a kept receipt: its index lies
// beyond this log. The same holds for the log alone if no key changed since.
// R-050, D-10.
func TestWholeRollbackNeedsAnAnchor(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	cfg := Config(t)
	cfg.Dir = d.then
	k := Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Errorf("a whole old store is not ready: %+v", r)
	}
	s := Session(t, k, "acme")
	if !Verify(t, k, s, Digest(1), d.sigs).OK {
		t.Error("verify fails")
	}
	k.Close()
	now := Config(t)
	now.Dir = d.now
	k = Open(t, now, core.Options{})
	receipt := Sign(t, k, Session(t, k, "acme"), strings.TrimSuffix(d.first, "#v1"), Digest(1)).Receipt
	k.Close()
	k = Open(t, cfg, core.Options{})
	if old := Sign(t, k, Session(t, k, "acme"), strings.TrimSuffix(d.first, "#v1"), Digest(1)).Receipt; old.LogIndex >= receipt.LogIndex || old.KeySeq >= receipt.KeySeq {
		t.Errorf("a client that kept receipt %+v cannot tell that %+v went back", receipt, old)
	}
}

// A byte of keys.db changed anywhere: the store says so, or nothing changed.
// It never opens as ready with anything else in it..
func TestStoreFlips(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	cfg := Config(t)
	cfg.Dir = d.now
	path := filepath.Join(d.now, "keys.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	past := filepath.Join(t.TempDir(), "past")
	Copy(t, d.now, past)
	var keys string
	describe := func(k *core.KMS) string {
		s := Session(t, k, "acme")
		b, err := k.Call(context.Background(), s, "list", []byte(`{"tenant":"acme"}`))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	k := Open(t, cfg, core.Options{})
	keys = describe(k)
	k.Close()
	stride := 997 // a prime, so that all offsets in a page get their turn
	if os.Getenv("RONKMS_SOAK") == "1" {
		stride = 7
	}
	var refused, alarms, clean int
	for at := 0; at < len(good); at += stride {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		replace(t, past, d.now, "audit")
		k, err := core.Open(context.Background(), cfg, core.Options{Passphrase: func() ([]byte, error) { return []byte(Passphrase), nil }})
		if err != nil {
			refused++
			if Code(err) != api.CodeAuditIntegrity {
				t.Errorf("byte %d: %v, want AuditIntegrity", at, err)
			}
			continue
		}
		if r := k.Ready(); !r.Ready {
			alarms++
		} else if describe(k) != keys {
			t.Errorf("byte %d: ready with other keys", at)
		} else {
			clean++
		}
		k.Close()
	}
	if refused+alarms < 10 {
		t.Errorf("%d refused, %d alarms, %d without effect: the changes did not reach the store", refused, alarms, clean)
	}
}

// recordsCorruptKeys changes a bit in every key record.
func recordsCorruptKeys(_ *bbolt.Tx, b *bbolt.Bucket) error {
	changed := make(map[string][]byte)
	err := b.ForEach(func(name, v []byte) error {
		if strings.HasPrefix(string(name), "key/") {
			bad := bytes.Clone(v)
			bad[len(bad)-1] ^= 1
			changed[string(name)] = bad
		}
		return nil
	})
	for name, v := range changed {
		if err == nil {
			err = b.Put([]byte(name), v)
		}
	}
	return err
}

// An older log is noticed even if nothing but signatures came after it, once
// the store was closed or opened again since. R-050.
func TestOldLogWithoutMutations(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	k.Close()
	then := filepath.Join(t.TempDir(), "then")
	Copy(t, cfg.Dir, then)
	k = Open(t, cfg, core.Options{})
	s = Session(t, k, "acme")
	sigs := Sign(t, k, s, kid, Digest(1)).Sigs
	k.Close()
	replace(t, then, cfg.Dir, "audit")
	k = Open(t, cfg, core.Options{})
	if r := k.Ready(); r.Ready || r.Reason != string(api.ReasonStoreTampered) {
		t.Fatalf("an older log was accepted: %+v", r)
	}
	s = Session(t, k, "acme")
	if !Verify(t, k, s, Digest(1), sigs).OK {
		t.Fatal("verify stopped")
	}
}
