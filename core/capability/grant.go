package capability

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Keys gives access to root keys. Root calls use once, with the 32 bytes of
// the key that id names, and returns after use has; use neither keeps nor
// changes the bytes. It returns [ErrUnknownRoot] for an id without a key,
// whatever else for a key that can not be used now. The id comes from a token
// that is not verified yet, but is always a valid one (see [ValidRootID]).
//
// Everything derived from the key is computed inside use, so an
// implementation may run it under runtime/secret. Root must be safe for
// concurrent use.
type Keys interface {
	Root(id string, use func(key []byte)) error
}

// A Verifier checks tokens against root keys. It is safe for concurrent use.
// The zero Verifier has no keys and refuses every token.
type Verifier struct{ keys Keys }

// NewVerifier returns a Verifier that asks keys for the root key of each token.
func NewVerifier(keys Keys) *Verifier { return &Verifier{keys} }

// Verify checks the form of a token, then its chain of tags, then the form of
// its caveats, and returns what it grants. Time is not looked at: it moves, so
// that is for Clear. Nothing of a caveat is interpreted, or told in an error,
// before the chain is found to be authentic.
//
// A token that is not good gives a [Refusal] of class [ErrInvalid]. An error
// that is no Refusal means that the root key could not be used.
func (v *Verifier) Verify(text string) (*Grant, error) {
	t, bad := parseToken(text)
	if bad != nil {
		return nil, bad
	}
	if v == nil || v.keys == nil {
		return nil, refuseUnknownRoot
	}
	var usable, authentic bool
	err := v.keys.Root(t.rootID, func(key []byte) {
		usable = len(key) == RootKeyBytes
		// The library compares the last tag in constant time.
		authentic = usable && t.macaroon.Verify(key, func(string) error { return nil }, nil) == nil
	})
	switch {
	case errors.Is(err, ErrUnknownRoot):
		return nil, refuseUnknownRoot
	case err != nil:
		return nil, fmt.Errorf("capability: root key: %w", err)
	case !usable:
		return nil, fmt.Errorf("capability: root key: not given, or not of %d bytes", RootKeyBytes)
	case !authentic:
		return nil, refuseSignature
	}
	list, bad := conditions(t.caveatTexts())
	if bad != nil {
		return nil, bad
	}
	g := &Grant{id: t.id, conditions: list}
	for _, c := range list {
		switch kinds[c.kind].name {
		case "exp":
			g.expiry = c.num
		case "tenant":
			if g.tenant == "" {
				g.tenant = c.text
			}
		}
	}
	return g, nil
}

// A Grant is what a verified token allows. It does not change, keeps no part
// of the token's tags, and prints as its ID and tenant alone. It is safe for
// concurrent use. The zero Grant allows nothing.
type Grant struct {
	id         string
	tenant     string
	expiry     int64
	conditions []condition // in the order of kinds; never empty once verified
}

// ID names the token in audit records: "cap:" and the first 16 hex digits of
// the SHA-256 of its identifier. Tokens made from one another by attenuation
// share it.
func (g *Grant) ID() string { return g.id }

// Tenant is the tenant of the token's first tenant caveat. If later ones
// disagree with it, the grant clears nothing.
func (g *Grant) Tenant() string { return g.tenant }

// Expiry is the earliest expiry of the token: from that second on it clears
// nothing.
func (g *Grant) Expiry() time.Time { return time.Unix(g.expiry, 0).UTC() }

// Format prints the ID and the tenant whatever the verb, so that no way of
// printing a Grant, %#v and %d included, tells its caveats.
func (g Grant) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "capability.Grant("+g.id+" "+g.tenant+")")
}

// A Request is what a caller wants to do, as far as caveats look at it.
type Request struct {
	// Scopes are the scopes that the operation accepts; any one suffices.
	Scopes []string
	// Tenant is the tenant acted for. It must be given.
	Tenant string
	// KID is the canonical text of the key's kid, with a version if the
	// request names one. An operation that makes a key gives the segments
	// already known, tenant/purpose/alg. It is empty if no key is concerned;
	// a kid-prefix then denies.
	KID string
	// Purpose is the key's purpose label, empty if no key is concerned; a
	// purpose-prefix then denies.
	Purpose string
	// Now is the time, in which fractions of a second are cut off.
	Now time.Time
}

// Clear tells whether the grant allows r and returns the proof. All caveats
// must hold; the order of checks is time, tenant, scope, kid, purpose. A
// request whose parts contradict each other, or whose kid or purpose is not
// well-formed, is denied too. A request about several keys is cleared once
// for each.
//
// Errors are refusals: of class [ErrInvalid] if the token is out of its time,
// else [ErrDenied]. Clear looks nothing up and allocates nothing.
func (g *Grant) Clear(r Request) (Permit, error) {
	if g == nil || len(g.conditions) == 0 {
		return Permit{}, refuseMissing
	}
	// A clock that was never set must not make expired tokens good.
	if r.Now.Unix() < 1 {
		return Permit{}, refuseNotYet
	}
	for _, c := range g.conditions {
		if k := &kinds[c.kind]; !k.holds(c, r) {
			return Permit{}, k.refusal
		}
	}
	if bad := incoherent(r); bad != nil {
		return Permit{}, bad
	}
	return Permit{actor: g.id, tenant: r.Tenant, kid: r.KID, purpose: r.Purpose}, nil
}

// incoherent guards against a caller that clears one tenant or purpose and
// names the key of another, or a kid whose text means something else further
// on ("acme/../other").
func incoherent(r Request) *Refusal {
	if r.Purpose != "" && !validLabel(r.Purpose) {
		return refusePurpose
	}
	if r.KID == "" {
		return nil
	}
	if !validKIDPrefix(r.KID) {
		return refuseKID
	}
	tenant, rest, _ := strings.Cut(r.KID, "/")
	if tenant != r.Tenant {
		return refuseTenant
	}
	purpose, _, _ := strings.Cut(rest, "/")
	if r.Purpose != "" && purpose != "" && purpose != r.Purpose {
		return refusePurpose
	}
	return nil
}

// A Permit proves that a Grant cleared a request. Only Clear makes valid ones;
// the zero Permit is not valid. It does not outlive the request it was made
// for: time is checked when it is made, not when it is used.
type Permit struct{ actor, tenant, kid, purpose string }

// Valid tells whether the permit came from Clear.
func (p Permit) Valid() bool { return p.actor != "" }

// Actor is the ID of the Grant.
func (p Permit) Actor() string { return p.actor }

// Tenant is the tenant that was cleared.
func (p Permit) Tenant() string { return p.tenant }

// KID is the kid that was cleared, empty if the request had none.
func (p Permit) KID() string { return p.kid }

// Purpose is the purpose that was cleared, empty if the request had none.
func (p Permit) Purpose() string { return p.purpose }
