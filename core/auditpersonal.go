package core

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// The actor and the detail of a record can name people. With
// KMS_AUDIT_PERSONAL=sealed they are encrypted under a key of the tenant whose
// token was used, so that destroying the key erases them everywhere, while the
// log and every proof about it stay as they are. The sealed field of a record:
//
//	0x01 | generation of the key, uint32 | length of owner, byte | owner
//	nonce, 24 bytes | ciphertext | tag, 16 bytes      (alg.SealField)
//
//	plaintext:       LP(actor) | detail
//	associated data: "ron-kms/audit-personal/v1" 0x00 | generation, uint32 | LP(owner) | kind, byte
//	                 | LP(op) | op_id, 16 bytes | LP(tenant) | LP(key_id) | input_hash, 32 bytes
//
// Owner is left out if it is the record's tenant: it differs where a stranger
// was denied. LP(x) is the length of x in 2 bytes, then x; integers are
// big-endian.

const (
	prefixTenantAudit = prefixSystem + "audit-tenant/" // + tenant

	personalVersion = 1
	personalDomain  = "ron-kms/audit-personal/v1\x00"

	// withheld stands for the detail, and tells of the actor, of a record that
	// could not wait for a key.
	withheld = "withheld: the tenant has no audit key"

	// actorOperator is the actor of what is done to a store by whoever has its
	// passphrase.
	actorOperator = "operator"

	// maxTenantKeys bounds the keys in the arena; others are opened on use.
	maxTenantKeys = 256
)

var (
	// ErrErased is wrapped by errors about a sealed field whose key was
	// destroyed: nobody can open it again.
	ErrErased = errors.New("the tenant's audit key of that time was erased")

	errNoTenantKey = errors.New("the tenant has no audit key")
)

// tenantKey is the audit key of a tenant. Generations are counted from 1, and
// each erasure ends one.
type tenantKey struct {
	generation uint32
	key        *secret.Bytes
}

// tenantKeys opens the audit keys of tenants.
type tenantKeys struct {
	vault *vault

	mu   sync.RWMutex // guards keys, read-held while one is used
	open map[string]tenantKey
}

func newTenantKeys(v *vault) *tenantKeys {
	return &tenantKeys{vault: v, open: make(map[string]tenantKey)}
}

// with lends the key of a tenant to use. It returns errNoTenantKey if there is
// none. It waits for nothing but a read of the store.
func (t *tenantKeys) with(tenant string, use func(tenantKey) error) error {
	for {
		t.mu.RLock()
		if k, ok := t.open[tenant]; ok {
			defer t.mu.RUnlock()
			return use(k)
		}
		t.mu.RUnlock()
		if err := t.load(tenant); err != nil {
			return err
		}
	}
}

// load opens the key of a tenant into the arena.
func (t *tenantKeys) load(tenant string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.open[tenant]; ok {
		return nil
	}
	r, err := t.stored(tenant)
	if err != nil {
		return err
	}
	if len(r.Sealed) == 0 {
		return errNoTenantKey
	}
	seal, err := t.vault.StoreKey(labelSystem, 32)
	if err != nil {
		return err
	}
	defer seal.Destroy()
	key, err := seal.Unseal(t.vault.Arena(), r.Sealed, tenantKeyAAD(tenant, r.Version))
	if errors.Is(err, secret.ErrUnseal) {
		return fmt.Errorf("record of a tenant's audit key: %w", backends.ErrTampered)
	}
	if err != nil {
		return err
	}
	t.put(tenant, tenantKey{r.Version, key})
	return nil
}

// stored reads what the store has about the key of a tenant; nothing is the
// zero record.
func (t *tenantKeys) stored(tenant string) (r systemRecord, err error) {
	_, err = t.vault.get(context.Background(), prefixTenantAudit+tenant, &r)
	return r, err
}

// put makes room and keeps k. The caller holds mu.
func (t *tenantKeys) put(tenant string, k tenantKey) {
	for old := range t.open {
		if len(t.open) < maxTenantKeys {
			break
		}
		t.drop(old)
	}
	t.open[tenant] = k
}

// drop wipes the open key of a tenant. The caller holds mu.
func (t *tenantKeys) drop(tenant string) {
	if k, ok := t.open[tenant]; ok {
		delete(t.open, tenant)
		k.key.Destroy()
	}
}

// close wipes all keys.
func (t *tenantKeys) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tenant := range t.open {
		t.drop(tenant)
	}
}

// create makes the next key of a tenant. The caller holds the lane.
func (t *tenantKeys) create(ctx context.Context, tenant string, previous uint32) error {
	seal, err := t.vault.StoreKey(labelSystem, 32)
	if err != nil {
		return err
	}
	defer seal.Destroy()
	key, err := t.vault.Arena().Random(alg.FieldKeyBytes)
	if err != nil {
		return err
	}
	generation := previous + 1
	sealed, err := seal.Seal(key, tenantKeyAAD(tenant, generation))
	if err == nil {
		err = t.vault.commit(ctx, 0, 0, named{prefixTenantAudit + tenant, systemRecord{Sealed: sealed, Version: generation}})
	}
	if err != nil {
		key.Destroy()
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(tenant, tenantKey{generation, key})
	return nil
}

// tenantKeyAAD binds a sealed key to its tenant and generation, so that none
// can stand for another.
func tenantKeyAAD(tenant string, generation uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte(prefixTenantAudit+tenant+"#"), generation)
}

// sealsPersonal reports whether new records are sealed.
func (k *KMS) sealsPersonal() bool { return k.cfg.AuditPersonal == config.AuditPersonalSealed }

// ensureTenantKey makes the audit key of a tenant if records are sealed and it
// has none: when its first session is opened, and before a private key is
// used. So no verdict waits for it.
func (k *KMS) ensureTenantKey(ctx context.Context, tenant string) error {
	if !k.sealsPersonal() {
		return nil
	}
	there := func() error { return k.personal.with(tenant, func(tenantKey) error { return nil }) }
	if err := there(); !errors.Is(err, errNoTenantKey) {
		return k.storeError(err)
	}
	select {
	case k.lane <- struct{}{}:
		defer func() { <-k.lane }()
	case <-ctx.Done():
		return timeout(ctx.Err())
	}
	if err := k.writable(); err != nil {
		return err
	}
	if err := there(); !errors.Is(err, errNoTenantKey) { // somebody was faster
		return k.storeError(err)
	}
	r, err := k.personal.stored(tenant)
	if err == nil {
		err = k.personal.create(context.WithoutCancel(ctx), tenant, r.Version)
	}
	return k.storeError(err)
}

// enter begins a call that is not a verb's: Close waits until the caller gives
// back the read lock of calls.
func (k *KMS) enter() error {
	if !k.calls.TryRLock() {
		return api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	if k.closed.Load() {
		k.calls.RUnlock()
		return api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	return nil
}

// storeError turns an error of the store into one of the table, and notes
// that the store is damaged or out of order.
func (k *KMS) storeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, backends.ErrTampered):
		k.tampered(err)
		return k.writable()
	case errors.Is(err, backends.ErrArenaFull), errors.Is(err, secret.ErrArenaFull):
		return api.WrapError(api.ReasonArenaFull, "the locked memory for secrets is full", err)
	}
	return k.failed(api.ReasonStore, err)
}

// protect seals what of r can name people, if records are sealed. Owner is the
// tenant whose token was used. What cannot be sealed is left out: it must not
// be in the log in clear.
func (k *KMS) protect(r *audit.Record, owner string) {
	if !k.sealsPersonal() || r.Actor == "" && len(r.Detail) == 0 {
		return
	}
	plain := append(appendLP(make([]byte, 0, 2+len(r.Actor)+len(r.Detail)), r.Actor), r.Detail...)
	err := k.personal.with(owner, func(t tenantKey) error {
		body, err := alg.SealField(t.key, personalAAD(r, owner, t.generation), plain)
		if err != nil {
			return err
		}
		shown := owner
		if owner == r.Tenant {
			shown = ""
		}
		b := binary.BigEndian.AppendUint32([]byte{personalVersion}, t.generation)
		b = append(append(b, byte(len(shown))), shown...)
		r.Sealed = append(b, body...)
		return nil
	})
	r.Actor, r.Detail = "", nil
	if err != nil {
		r.Detail = []byte(withheld)
	}
}

// personalAAD is what a sealed field is bound to.
func personalAAD(r *audit.Record, owner string, generation uint32) []byte {
	b := make([]byte, 0, 256)
	b = append(b, personalDomain...)
	b = binary.BigEndian.AppendUint32(b, generation)
	b = appendLP(b, owner)
	b = append(b, byte(r.Kind))
	b = appendLP(b, r.Op)
	b = append(b, r.OpID[:]...)
	b = appendLP(b, r.Tenant)
	b = appendLP(b, r.Key)
	return append(b, r.InputHash[:]...)
}

func appendLP(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// personalOf reads the parts of a sealed field that are not encrypted.
func personalOf(r *audit.Record) (owner string, generation uint32, body []byte, err error) {
	b := r.Sealed
	if len(b) < 6 || b[0] != personalVersion || len(b) < 6+int(b[5]) {
		return "", 0, nil, errors.New("the sealed field is of an unknown form")
	}
	n := 6 + int(b[5])
	if owner = string(b[6:n]); owner == "" {
		owner = r.Tenant
	}
	return owner, binary.BigEndian.Uint32(b[1:]), b[n:], nil
}

// OpenPersonal opens the sealed field of a record of this store's log and puts
// the actor and the detail in their places in r. It does nothing if there is
// none. The error wraps [ErrErased] if the key is gone. It is for who may see
// everything: it asks for no capability.
func (k *KMS) OpenPersonal(r *audit.Record) error {
	if len(r.Sealed) == 0 {
		return nil
	}
	owner, generation, body, err := personalOf(r)
	if err != nil {
		return err
	}
	var plain []byte
	err = k.personal.with(owner, func(t tenantKey) error {
		if generation < t.generation {
			return ErrErased
		}
		var err error
		plain, err = alg.OpenField(t.key, personalAAD(r, owner, generation), body)
		return err
	})
	if errors.Is(err, errNoTenantKey) {
		err = ErrErased
	}
	if err != nil {
		return fmt.Errorf("the sealed field: %w", err)
	}
	if len(plain) < 2 || len(plain) < 2+int(binary.BigEndian.Uint16(plain)) {
		return errors.New("the sealed field is malformed")
	}
	n := 2 + int(binary.BigEndian.Uint16(plain))
	r.Actor, r.Detail = string(plain[2:n]), plain[n:]
	return nil
}

// answerFor is a copy of an intent on the way to becoming its answer, with
// another kind and detail: what is sealed is bound to the old ones.
func (k *KMS) answerFor(intent *audit.Record, kind audit.Kind, detail string) *audit.Record {
	r := *intent
	sealed := len(r.Sealed) > 0
	owner := r.Tenant
	if sealed {
		if o, _, _, err := personalOf(&r); err == nil {
			owner = o
		}
		// If it does not open, the answer goes without an actor.
		_ = k.OpenPersonal(&r)
	}
	r.Kind, r.Detail, r.Sealed = kind, []byte(detail), nil
	if sealed && r.Actor != "" {
		k.protect(&r, owner)
	}
	return &r
}

// EraseTenant destroys the audit key of a tenant, so that no sealed field made
// with it can be opened again, here or by anybody who has no copy of the store
// from before. The log stays as it is, and says that it was done. The tenant's
// next session makes a new key.
func (k *KMS) EraseTenant(ctx context.Context, tenant string) error {
	if err := k.enter(); err != nil {
		return err
	}
	defer k.calls.RUnlock()
	if !api.ValidLabel(tenant) {
		return api.NewError(api.ReasonMalformed, "the tenant must be a label")
	}
	select {
	case k.lane <- struct{}{}:
		defer func() { <-k.lane }()
	case <-ctx.Done():
		return timeout(ctx.Err())
	}
	if err := k.writable(); err != nil {
		return err
	}
	stored, err := k.personal.stored(tenant)
	if err != nil {
		return k.storeError(err)
	}
	if len(stored.Sealed) == 0 {
		return api.NewError(api.ReasonNotFound, "the tenant has no audit key: nothing of it is sealed, or it was erased before")
	}
	// As a mutation: intent, effect, result. A crash in between is settled by
	// the next opening.
	opID := uuid.New()
	intent := &audit.Record{Kind: audit.KindIntent, Time: k.clock(), Op: "erase", OpID: opID, Tenant: tenant, Actor: actorOperator}
	receipts, err := k.append(ctx, intent)
	if err != nil {
		return err
	}
	at := receipts[0].LogIndex
	ctx = context.WithoutCancel(ctx)
	err = k.vault.commit(ctx, at+1, 0,
		named{prefixTenantAudit + tenant, systemRecord{Version: stored.Version}},
		named{opName(tenant, "erase", opID), opRecord{Intent: at}})
	if err != nil {
		return k.failed(api.ReasonStore, err)
	}
	k.personal.mu.Lock()
	k.personal.drop(tenant)
	k.personal.mu.Unlock()
	_, err = k.append(ctx, &audit.Record{
		Kind: audit.KindOperation, Time: k.clock(), Op: "erase", OpID: opID, Tenant: tenant, Actor: actorOperator, Result: resultOK, Ref: at + 1,
	})
	return err
}

// Reveal returns the record at an index of the log with its sealed field
// opened, after it has put on record that it does. The record must be about
// the tenant, or of somebody who acted for it.
func (k *KMS) Reveal(ctx context.Context, tenant string, index uint64) (*audit.Record, error) {
	if err := k.enter(); err != nil {
		return nil, err
	}
	defer k.calls.RUnlock()
	if err := k.writable(); err != nil {
		return nil, err
	}
	r, err := k.auditRecord(ctx, index)
	if err != nil {
		return nil, err
	}
	owner := r.Tenant
	if len(r.Sealed) > 0 {
		if owner, _, _, err = personalOf(r); err != nil {
			return nil, api.WrapError(api.ReasonUnsupported, "the sealed field is of an unknown form", err)
		}
	}
	if tenant == "" || r.Tenant != tenant && owner != tenant {
		return nil, api.NewError(api.ReasonNotFound, "the tenant has no record with this index")
	}
	if err := k.OpenPersonal(r); err != nil {
		return nil, err
	}
	_, err = k.append(ctx, &audit.Record{
		Kind: audit.KindOperation, Time: k.clock(), Op: "reveal", Tenant: tenant, Actor: actorOperator, Result: resultOK,
		Detail: fmt.Appendf(nil, "record %d", index),
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// auditRecord reads one record of the log.
func (k *KMS) auditRecord(ctx context.Context, index uint64) (found *audit.Record, err error) {
	enough := errors.New("enough")
	err = k.audit.Read(ctx, index, func(_ uint64, r *audit.Record) error {
		found = r
		return enough
	})
	switch {
	case found != nil:
		return found, nil
	case errors.Is(err, audit.ErrNotKept):
		return nil, api.WrapError(api.ReasonNotFound, "the record is not kept any more", err)
	case err != nil:
		return nil, api.WrapError(api.ReasonInternal, "the record could not be read", err)
	}
	return nil, api.NewError(api.ReasonNotFound, "the log has no record with this index")
}
