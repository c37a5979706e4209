package capability

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/rustyonions/ron-kms/core/capability/internal/foreign"
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

// A TokenVerifier turns the text of a token into what it grants, as
// [Verifier.Verify] says. It must be safe for concurrent use.
type TokenVerifier interface {
	Verify(text string) (*Grant, error)
}

// A Verifier checks tokens against root keys. It is safe for concurrent use.
// The zero Verifier has no keys and refuses every token.
type Verifier struct {
	keys    Keys
	revoked Revocations // nil: nothing is ever revoked
}

// NewVerifier returns a Verifier that asks keys for the root key of each token.
// If keys implements [Revocations] too, it is asked whether a token was
// revoked, at each Verify and each Clear: whoever has the root keys is the
// one who knows which of them no longer count.
func NewVerifier(keys Keys) *Verifier {
	v := &Verifier{keys: keys}
	v.revoked, _ = keys.(Revocations)
	return v
}

// Verify checks the form of a token, then its chain of tags, then the form of
// its caveats, then whether it was revoked, and returns what it grants. Time
// is not looked at: it moves, so that is for Clear. Nothing of a caveat is
// interpreted, or told in an error, before the chain is found to be authentic.
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
	return newGrant(foreign.Token{
		Root: t.rootID, ID: t.id, Identifier: t.macaroon.Id(), Issued: t.issued, Caveats: t.caveatTexts(),
	}, v.revoked)
}

// Adopt makes the grant of a token that a package below this one found to be
// authentic. No other package can name its first argument's type.
func Adopt(t foreign.Token, revoked Revocations) (*Grant, error) { return newGrant(t, revoked) }

// newGrant reads the caveats of an authentic token.
func newGrant(t foreign.Token, revoked Revocations) (*Grant, error) {
	list, bad := conditions(t.Caveats)
	if bad != nil {
		return nil, bad
	}
	g := &Grant{id: t.ID, conditions: list, rates: rates(t)}
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
	if revoked != nil {
		g.life = &life{revocations: revoked, subject: Subject{Root: t.Root, ID: t.ID, Tenant: g.tenant, Issued: t.Issued}}
		if !g.life.lasts() {
			return nil, refuseRevoked
		}
	}
	return g, nil
}

// A Grant is what a verified token allows. It does not change, except that it
// ends when the token is revoked; it keeps no part of the token's tags, and
// prints as its ID and tenant alone. It is safe for concurrent use. The zero
// Grant allows nothing.
type Grant struct {
	id         string
	tenant     string
	expiry     int64
	conditions []condition // in the order of kinds; never empty once verified
	rates      []Rate
	life       *life // nil if nothing can revoke it
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

// Rates are the buckets that each operation of the grant must be counted in,
// one for each rate caveat. The caller must not change them.
func (g *Grant) Rates() []Rate { return g.rates }

// A Rate is a rate caveat: at most PerSecond operations a second in the long
// run, and Burst at once, both from 1 to [MaxRate]. Key names the bucket. It
// is made of the token up to and with that caveat, so that all tokens that are
// narrowed further from there share it: making more of them gains nothing.
type Rate struct {
	Key       [32]byte
	PerSecond int
	Burst     int
}

// rates finds the rate caveats of a token.
func rates(t foreign.Token) []Rate {
	var list []Rate
	key := sha256.Sum256(append([]byte("ron-kms/rate/v1\x00"), t.Identifier...))
	for _, text := range t.Caveats {
		key = sha256.Sum256(append(key[:], text...))
		if c, bad := parseCondition(text); bad == nil && kinds[c.kind].name == "rate" {
			list = append(list, Rate{Key: key, PerSecond: int(c.num >> 32), Burst: int(c.num & math.MaxUint32)})
		}
	}
	return list
}

// A Presenter is who brings a token, and to whom, as far as the transport can
// tell. What is not known stays zero, and a caveat about it then denies.
type Presenter struct {
	// TLSKeyHash is the SHA-256 of the SubjectPublicKeyInfo of the client
	// certificate, whose private key the TLS handshake has proved.
	TLSKeyHash [32]byte
	// PeerUID is the user id of the process at the other end of a Unix
	// socket, as the kernel says.
	PeerUID *uint32
	// Audience is this server's own name.
	Audience string
}

// Bind checks the caveats about who presents the token, aud, client-key and
// peer-uid, and returns the grant for that presenter. A grant with such
// caveats clears nothing before; Bind of one without them returns it as it
// is. Errors are refusals of class [ErrInvalid].
func (g *Grant) Bind(p Presenter) (*Grant, error) {
	if g == nil || len(g.conditions) == 0 {
		return nil, refuseMissing
	}
	left := len(g.conditions)
	for _, c := range g.conditions {
		if k := &kinds[c.kind]; k.presenter != nil {
			left--
			if !k.presenter(c, p) {
				return nil, k.refusal
			}
		}
	}
	if left == len(g.conditions) {
		return g, nil
	}
	bound := *g
	bound.conditions = make([]condition, 0, left)
	for _, c := range g.conditions {
		if kinds[c.kind].presenter == nil {
			bound.conditions = append(bound.conditions, c)
		}
	}
	return &bound, nil
}

// NeedsBody tells whether Clear looks at Request.BodyBytes.
func (g *Grant) NeedsBody() bool { return g.has("max-bytes") }

// NeedsPayload tells whether Clear looks at Request.Payload.
func (g *Grant) NeedsPayload() bool { return g.has("payload-b3") }

func (g *Grant) has(name string) bool {
	return g != nil && slices.ContainsFunc(g.conditions, func(c condition) bool { return kinds[c.kind].name == name })
}

// A Request is what a caller wants to do, as far as caveats look at it.
type Request struct {
	// Scopes are the scopes that the operation accepts; any one suffices.
	Scopes []string
	// Verb is the name of the operation. If it is empty, a verb caveat denies.
	Verb string
	// Tenant is the tenant acted for. It must be given.
	Tenant string
	// KID is the canonical text of the key's kid, with a version if the
	// request names one. An operation that makes a key gives the segments
	// already known, tenant/purpose/alg. It is empty if no key is concerned;
	// a kid-prefix or alg then denies.
	KID string
	// Purpose is the key's purpose label, empty if no key is concerned; a
	// purpose-prefix then denies.
	Purpose string
	// BodyBytes is the size of the request in bytes. If it is 0, which means
	// that it is not known, max-bytes denies.
	BodyBytes int64
	// Payload is the BLAKE3 digest of the request's one payload. If it is
	// zero, because there is none or more than one, payload-b3 denies.
	Payload [32]byte
	// Now is the time, in which fractions of a second are cut off.
	Now time.Time
}

// Clear tells whether the grant allows r and returns the proof. All caveats
// must hold; the order of checks is revocation, time, presenter, tenant,
// scope, verb, kid, purpose, alg, size, payload. A request whose parts contradict each other, or whose kid or purpose is not
// well-formed, is denied too. A request about several keys is cleared once
// for each.
//
// Errors are refusals: of class [ErrInvalid] if the token was revoked, is out
// of its time or not for this presenter, else [ErrDenied]. Clear looks nothing
// up that the caller names, and allocates nothing.
func (g *Grant) Clear(r Request) (Permit, error) {
	if g == nil || len(g.conditions) == 0 {
		return Permit{}, refuseMissing
	}
	if g.life != nil && !g.life.lasts() {
		return Permit{}, refuseRevoked
	}
	// A clock that was never set must not make expired tokens good.
	if r.Now.Unix() < 1 {
		return Permit{}, refuseNotYet
	}
	for _, c := range g.conditions {
		k := &kinds[c.kind]
		if k.refusal != nil && (k.holds == nil || !k.holds(c, r)) {
			return Permit{}, k.refusal
		}
	}
	if bad := incoherent(r); bad != nil {
		return Permit{}, bad
	}
	return Permit{actor: g.id, tenant: r.Tenant, kid: r.KID, purpose: r.Purpose, rates: g.rates}, nil
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
type Permit struct {
	actor, tenant, kid, purpose string
	rates                       []Rate
}

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

// Rates are the buckets to count the operation in, as [Grant.Rates].
func (p Permit) Rates() []Rate { return p.rates }
