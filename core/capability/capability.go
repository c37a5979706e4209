// Package capability verifies capability tokens and decides whether one
// clears a request.
//
// A token is a macaroon: an identifier and a list of caveats under a chain of
// HMAC-SHA-256 tags, in which the tag of each link is the key of the next. So
// anybody who holds a token can add a caveat without asking, and nobody can
// take one away. The root key stays with the authority.
//
// The steps are kept apart. [Verifier.Verify] says that the bytes were not
// tampered with and returns a [Grant]. [Grant.Bind] says that whoever presents
// the token is who it was made for. [Grant.Clear] says that the caveats
// allow one request at one moment and returns a [Permit], which the next step
// of the engine consumes. Whatever is not understood denies: an unknown
// caveat, a second spelling of a known one, a trailing byte; and so does what
// a caveat looks at and the caller did not give.
//
// Grammar and semantics are docs/spec/token.md, vectors docs/vectors/token.json.
// Minting is package mint, so that a program which only verifies links none
// of it. Package ronauth reads the tokens of another issuer.
package capability

import "errors"

// Limits and sizes.
const (
	MaxTokenBytes = 4096 // of a token's text
	MaxCaveats    = 32   // in one token
	RootKeyBytes  = 32   // of a root key
)

// Location is the location field of every token. No tag covers it; it is
// compared all the same, so that each token has one spelling.
const Location = "ron-kms"

// Scopes, one for each class of operation. A token carries a subset.
const (
	ScopeAttest  = "kms:attest"
	ScopeAudit   = "kms:audit"
	ScopeCreate  = "kms:create"
	ScopeDerive  = "kms:derive"
	ScopeDestroy = "kms:destroy"
	ScopeRead    = "kms:read"
	ScopeRotate  = "kms:rotate"
	ScopeSign    = "kms:sign"
	ScopeUnwrap  = "kms:unwrap"
	ScopeVerify  = "kms:verify"
	ScopeWrap    = "kms:wrap"
)

// scopeNames has every scope in byte order; the index is the bit in a mask.
var scopeNames = [...]string{
	ScopeAttest, ScopeAudit, ScopeCreate, ScopeDerive, ScopeDestroy, ScopeRead,
	ScopeRotate, ScopeSign, ScopeUnwrap, ScopeVerify, ScopeWrap,
}

// ScopeList returns every scope in byte order, the order of a scope caveat.
func ScopeList() []string { return append([]string(nil), scopeNames[:]...) }

// scopeBit returns the bit of a scope, 0 for a name that is none.
func scopeBit(name string) int64 {
	for i := range scopeNames {
		if scopeNames[i] == name {
			return 1 << i
		}
	}
	return 0
}

// The classes of refusal, for errors.Is. An error that is neither is a fault
// of the server: the root key could not be used. It allows nothing either.
var (
	// ErrInvalid is the class of a token that is missing, malformed, not
	// authentic or outside its time: HTTP 401.
	ErrInvalid = errors.New("capability: invalid token")
	// ErrDenied is the class of a good token that does not allow the request:
	// HTTP 403.
	ErrDenied = errors.New("capability: denied")
	// ErrUnknownRoot is what [Keys] returns for an id it has no key for.
	// Verify gives it the same reason as a bad signature; errors.Is tells
	// them apart.
	ErrUnknownRoot = errors.New("capability: unknown root key")
)

// Reasons of a [Refusal]. The list is closed, so a reason may be a metric
// label; names and meanings are never reused.
const (
	ReasonTokenMissing    = "token-missing"      // ErrInvalid
	ReasonTokenMalformed  = "token-malformed"    // ErrInvalid
	ReasonTokenSignature  = "token-signature"    // ErrInvalid
	ReasonTokenExpired    = "token-expired"      // ErrInvalid
	ReasonTokenNotYet     = "token-not-yet"      // ErrInvalid
	ReasonTokenRevoked    = "token-revoked"      // ErrInvalid
	ReasonCaveatUnknown   = "caveat-unknown"     // ErrInvalid
	ReasonCaveatMalformed = "caveat-malformed"   // ErrInvalid
	ReasonCaveatMissing   = "caveat-missing"     // ErrInvalid
	ReasonAudience        = "audience-mismatch"  // ErrInvalid
	ReasonPresenter       = "presenter-mismatch" // ErrInvalid
	ReasonTenantMismatch  = "tenant-mismatch"    // ErrDenied
	ReasonScopeMissing    = "scope-missing"      // ErrDenied
	ReasonKIDMismatch     = "kid-mismatch"       // ErrDenied
	ReasonPurposeMismatch = "purpose-mismatch"   // ErrDenied
	ReasonVerbMismatch    = "verb-mismatch"      // ErrDenied
	ReasonAlgMismatch     = "alg-mismatch"       // ErrDenied
	ReasonBodyTooLarge    = "body-too-large"     // ErrDenied
	ReasonPayloadMismatch = "payload-mismatch"   // ErrDenied
)

// A Refusal is the error of a token or request that is not let through. It
// has a class, a reason from the list above, and nothing of the token.
type Refusal struct {
	reason string
	class  error
	cause  error // a further sentinel to match, or nil
}

// Reason returns one of the Reason constants.
func (r *Refusal) Reason() string { return r.reason }

// Error is the reason behind the package name.
func (r *Refusal) Error() string { return "capability: " + r.reason }

// Is reports whether target is the class, ErrInvalid or ErrDenied, or the
// cause of r.
func (r *Refusal) Is(target error) bool {
	return target != nil && (target == r.class || target == r.cause)
}

// The refusals are values made once, so that refusing allocates nothing.
var (
	refuseMissing         = &Refusal{reason: ReasonTokenMissing, class: ErrInvalid}
	refuseMalformed       = &Refusal{reason: ReasonTokenMalformed, class: ErrInvalid}
	refuseSignature       = &Refusal{reason: ReasonTokenSignature, class: ErrInvalid}
	refuseUnknownRoot     = &Refusal{reason: ReasonTokenSignature, class: ErrInvalid, cause: ErrUnknownRoot}
	refuseExpired         = &Refusal{reason: ReasonTokenExpired, class: ErrInvalid}
	refuseNotYet          = &Refusal{reason: ReasonTokenNotYet, class: ErrInvalid}
	refuseRevoked         = &Refusal{reason: ReasonTokenRevoked, class: ErrInvalid}
	refuseAudience        = &Refusal{reason: ReasonAudience, class: ErrInvalid}
	refusePresenter       = &Refusal{reason: ReasonPresenter, class: ErrInvalid}
	refuseCaveatUnknown   = &Refusal{reason: ReasonCaveatUnknown, class: ErrInvalid}
	refuseCaveatMalformed = &Refusal{reason: ReasonCaveatMalformed, class: ErrInvalid}
	refuseCaveatMissing   = &Refusal{reason: ReasonCaveatMissing, class: ErrInvalid}
	refuseTenant          = &Refusal{reason: ReasonTenantMismatch, class: ErrDenied}
	refuseScope           = &Refusal{reason: ReasonScopeMissing, class: ErrDenied}
	refuseKID             = &Refusal{reason: ReasonKIDMismatch, class: ErrDenied}
	refusePurpose         = &Refusal{reason: ReasonPurposeMismatch, class: ErrDenied}
	refuseVerb            = &Refusal{reason: ReasonVerbMismatch, class: ErrDenied}
	refuseAlg             = &Refusal{reason: ReasonAlgMismatch, class: ErrDenied}
	refuseBody            = &Refusal{reason: ReasonBodyTooLarge, class: ErrDenied}
	refusePayload         = &Refusal{reason: ReasonPayloadMismatch, class: ErrDenied}
)

// RefusalFor returns the refusal with one of the Reason constants, for the
// packages that verify tokens of other issuers; nil for any other text.
func RefusalFor(reason string) *Refusal {
	for _, r := range []*Refusal{
		refuseMissing, refuseMalformed, refuseSignature, refuseExpired, refuseNotYet, refuseRevoked, refuseCaveatUnknown, refuseCaveatMalformed,
		refuseCaveatMissing, refuseAudience, refusePresenter, refuseTenant, refuseScope, refuseKID, refusePurpose, refuseVerb, refuseAlg,
		refuseBody, refusePayload,
	} {
		if r.reason == reason {
			return r
		}
	}
	return nil
}
