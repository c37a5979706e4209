package core

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
)

// A Session is an open capability: the token was verified when the session was
// opened, and its caveats are cleared for each call. A session keeps no part
// of the token. It is safe for concurrent use.
type Session struct {
	kms    *KMS
	grant  *capability.Grant
	closed atomic.Bool
}

// OpenSession verifies a capability token of which nothing is known but its
// text. Errors have code NoCapability and do not say which part of a forged token
// was wrong.
func (k *KMS) OpenSession(token string) (*Session, error) {
	return k.OpenSessionFor(token, capability.Presenter{})
}

// OpenSessionFor is OpenSession for a token that somebody presented: by which key
// of TLS, or as which user of a Unix socket. A token that is bound to either is
// good for nobody else.
func (k *KMS) OpenSessionFor(token string, p capability.Presenter) (*Session, error) {
	if k.closed.Load() {
		return nil, api.NewError(api.ReasonClosed, "the KMS is shutting down")
	}
	grant, err := k.verifier.Verify(token)
	if err == nil && !k.clock().Before(grant.Expiry()) {
		return nil, k.unauthenticated(api.NewError(api.ReasonTokenExpired, "the capability token has expired"))
	}
	if err != nil {
		return nil, k.unauthenticated(tokenError(err))
	}
	p.Audience = k.cfg.Audience
	if grant, err = grant.Bind(p); err != nil {
		return nil, k.unauthenticated(tokenError(err))
	}
	// A store that is out of order makes no key, and still verifies: then the
	// records of this session go without what the key would seal.
	if k.enter() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), k.opTimeout)
		_ = k.ensureTenantKey(ctx, grant.Tenant())
		cancel()
		k.calls.RUnlock()
	}
	return &Session{kms: k, grant: grant}, nil
}

func tokenError(err error) *api.Error {
	var r *capability.Refusal
	if !errors.As(err, &r) {
		return api.WrapError(api.ReasonInternal, "the capability could not be checked", err)
	}
	return api.NewError(api.Reason(r.Reason()), "a valid capability token is required")
}

// unauthenticated counts a refusal of somebody unknown. Such refusals reach
// the audit log in sums, so that they cannot flood it.
func (k *KMS) unauthenticated(e *api.Error) error {
	k.metrics.Reject.WithLabelValues(string(e.Reason)).Inc()
	k.noise.Add(1)
	return e
}

// Tenant is the tenant that the session acts for.
func (s *Session) Tenant() string { return s.grant.Tenant() }

// Close ends the session: later calls fail, running ones finish. It may be
// called more than once.
func (s *Session) Close() { s.closed.Store(true) }
