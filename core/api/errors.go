package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A Status is the C ABI's result of a call: RONKMS_OK is 0. Numbers are never
// reused.
type Status int32

const (
	StatusOK              Status = 0
	StatusInvalid         Status = 1
	StatusUnauthenticated Status = 2
	StatusDenied          Status = 3
	StatusNotFound        Status = 4
	StatusConflict        Status = 5
	StatusState           Status = 6
	StatusUnsupported     Status = 7
	StatusTooLarge        Status = 8
	StatusBufferTooSmall  Status = 9
	StatusBusy            Status = 10
	StatusTimeout         Status = 11
	StatusUnavailable     Status = 12
	StatusIntegrity       Status = 13
	StatusHandle          Status = 14
	StatusForked          Status = 15
	StatusABI             Status = 16
	StatusInternal        Status = 17
)

var statusNames = [...]string{
	"OK", "INVALID", "UNAUTHENTICATED", "DENIED", "NOT_FOUND", "CONFLICT", "STATE", "UNSUPPORTED",
	"TOO_LARGE", "BUFFER_TOO_SMALL", "BUSY", "TIMEOUT", "UNAVAILABLE", "INTEGRITY", "HANDLE", "FORKED", "ABI", "INTERNAL",
}

// String is the name in the header without its RONKMS_ prefix, "UNKNOWN" for
// a number outside the table.
func (s Status) String() string {
	if s < 0 || int(s) >= len(statusNames) {
		return "UNKNOWN"
	}
	return statusNames[s]
}

// Statuses is the number of statuses in the table.
const Statuses = len(statusNames)

// A Code is what a REST client branches on. The list is closed.
type Code string

const (
	CodeBadRequest         Code = "BadRequest"
	CodeNoCapability       Code = "NoCapability"
	CodeExportForbidden    Code = "ExportForbidden"
	CodePolicyDenied       Code = "PolicyDenied"
	CodePqPolicy           Code = "PqPolicy"
	CodeAttestationMissing Code = "AttestationMissing"
	CodeNotFound           Code = "NotFound"
	CodeConflict           Code = "Conflict"
	CodeStaleVersion       Code = "StaleVersion"
	CodeKeyDestroyed       Code = "KeyDestroyed"
	CodeTimeSkew           Code = "TimeSkew"
	CodeUnsupported        Code = "Unsupported"
	CodeTooLarge           Code = "TooLarge"
	CodeBackpressure       Code = "Backpressure"
	CodeTimeout            Code = "Timeout"
	CodeStoreUnavailable   Code = "StoreUnavailable"
	CodePolicyUnavailable  Code = "PolicyUnavailable"
	CodeAuditIntegrity     Code = "AuditIntegrity"
	CodeInternal           Code = "Internal"
)

// A Reason refines a code: a stable word from a closed list, also the label of
// kms_reject_total.
type Reason string

const (
	ReasonMalformed    Reason = "malformed"
	ReasonJSON         Reason = "json"
	ReasonKID          Reason = "kid"
	ReasonLabel        Reason = "label"
	ReasonOpID         Reason = "op-id"
	ReasonDigest       Reason = "digest"
	ReasonBase64       Reason = "base64"
	ReasonMixedKeys    Reason = "mixed-keys"
	ReasonDuplicateSig Reason = "duplicate-signature"
	ReasonBundle       Reason = "bundle"
	ReasonConfig       Reason = "config"
	ReasonTooMany      Reason = "too-many"
	ReasonMethod       Reason = "method"
	ReasonMediaType    Reason = "media-type"
	ReasonRoute        Reason = "route"

	ReasonTokenMissing    Reason = "token-missing"
	ReasonTokenMalformed  Reason = "token-malformed"
	ReasonTokenSignature  Reason = "token-signature"
	ReasonTokenExpired    Reason = "token-expired"
	ReasonTokenNotYet     Reason = "token-not-yet"
	ReasonCaveatUnknown   Reason = "caveat-unknown"
	ReasonCaveatMalformed Reason = "caveat-malformed"
	ReasonCaveatMissing   Reason = "caveat-missing"
	ReasonTenant          Reason = "tenant-mismatch"
	ReasonScope           Reason = "scope-missing"
	ReasonKIDCaveat       Reason = "kid-mismatch"
	ReasonRevoked         Reason = "token-revoked"
	ReasonAudience        Reason = "audience-mismatch"
	ReasonPresenter       Reason = "presenter-mismatch"
	ReasonVerbCaveat      Reason = "verb-mismatch"
	ReasonAlgCaveat       Reason = "alg-mismatch"
	ReasonBodyCaveat      Reason = "body-too-large"
	ReasonPayloadCaveat   Reason = "payload-mismatch"
	ReasonPurposeCaveat   Reason = "purpose-mismatch"

	ReasonExport        Reason = "export"
	ReasonPolicy        Reason = "policy"
	ReasonPq            Reason = "pq_policy"
	ReasonAttestation   Reason = "attestation"
	ReasonNotFound      Reason = "not-found"
	ReasonOpIDReused    Reason = "op-id-reused"
	ReasonConflict      Reason = "conflict"
	ReasonStaleVersion  Reason = "stale-version"
	ReasonDestroyed     Reason = "destroyed"
	ReasonVersions      Reason = "version-limit"
	ReasonTimeSkew      Reason = "time_skew"
	ReasonUnsupported   Reason = "unsupported"
	ReasonTooLarge      Reason = "too-large"
	ReasonBuffer        Reason = "buffer"
	ReasonBackpressure  Reason = "backpressure"
	ReasonArenaFull     Reason = "arena-full"
	ReasonTimeout       Reason = "timeout"
	ReasonStore         Reason = "store"
	ReasonStoreBusy     Reason = "store-busy"
	ReasonStoreMissing  Reason = "store-missing"
	ReasonStoreExists   Reason = "store-exists"
	ReasonStoreNewer    Reason = "store-newer"
	ReasonStoreTampered Reason = "store-tampered"
	ReasonPassphrase    Reason = "passphrase"
	ReasonAuditWrite    Reason = "audit-write"
	ReasonAuditFull     Reason = "audit-full"
	ReasonAudit         Reason = "audit-integrity"
	ReasonPolicyDown    Reason = "policy-unavailable"
	ReasonClosed        Reason = "closed"
	ReasonClock         Reason = "clock-behind"
	ReasonHandle        Reason = "handle"
	ReasonForked        Reason = "forked"
	ReasonABI           Reason = "abi"
	ReasonSignature     Reason = "signature"
	ReasonUnwrap        Reason = "unwrap"
	ReasonInternal      Reason = "internal"
)

// A Row is one line of the error table: everything that any face says about a
// reason.
type Row struct {
	Reason    Reason
	Code      Code
	HTTP      int
	Status    Status
	Retryable bool
	Hint      string // what to do about it
}

// table is the one error table (docs/spec/errors.md is checked against it).
var table = []Row{
	{ReasonMalformed, CodeBadRequest, 400, StatusInvalid, false, "correct the request"},
	{ReasonJSON, CodeBadRequest, 400, StatusInvalid, false, "send one JSON object with the documented fields, each once"},
	{ReasonKID, CodeBadRequest, 400, StatusInvalid, false, "a kid is tenant/purpose/alg/uuid#vN"},
	{ReasonLabel, CodeBadRequest, 400, StatusInvalid, false, "a label is letters, digits and ._:- beginning with a letter or digit"},
	{ReasonOpID, CodeBadRequest, 400, StatusInvalid, false, "send a fresh UUID as op_id and the same one on each retry"},
	{ReasonDigest, CodeBadRequest, 400, StatusInvalid, false, "send the BLAKE3 digest of the payload as 64 lower-case hex digits"},
	{ReasonBase64, CodeBadRequest, 400, StatusInvalid, false, "use standard base64 with padding"},
	{ReasonMixedKeys, CodeBadRequest, 400, StatusInvalid, false, "verify the signatures of each key in a request of their own"},
	{ReasonDuplicateSig, CodeBadRequest, 400, StatusInvalid, false, "send each signature once"},
	{ReasonBundle, CodeBadRequest, 400, StatusInvalid, false, "pass a signature bundle as ronkms_sign returned it"},
	{ReasonConfig, CodeBadRequest, 400, StatusInvalid, false, "correct the configuration"},
	{ReasonTooMany, CodeBadRequest, 400, StatusInvalid, false, "split the request"},
	{ReasonMethod, CodeBadRequest, http.StatusMethodNotAllowed, StatusInvalid, false, "use the method in the Allow header"},
	{ReasonMediaType, CodeBadRequest, http.StatusUnsupportedMediaType, StatusInvalid, false, "send Content-Type: application/json without Content-Encoding"},
	{ReasonRoute, CodeNotFound, 404, StatusNotFound, false, "see docs/spec/rest.md for the endpoints"},

	{ReasonTokenMissing, CodeNoCapability, 401, StatusUnauthenticated, false, "attach a capability token: Authorization: Bearer <macaroon>"},
	{ReasonTokenMalformed, CodeNoCapability, 401, StatusUnauthenticated, false, "attach a token as ron-kms token mint prints it"},
	{ReasonTokenSignature, CodeNoCapability, 401, StatusUnauthenticated, false, "attach a token minted for this server"},
	{ReasonTokenExpired, CodeNoCapability, 401, StatusUnauthenticated, false, "obtain a new token"},
	{ReasonTokenNotYet, CodeNoCapability, 401, StatusUnauthenticated, false, "wait until the token's nbf, or check the clocks"},
	{ReasonCaveatUnknown, CodeNoCapability, 401, StatusUnauthenticated, false, "use only the caveats of docs/spec/token.md"},
	{ReasonCaveatMalformed, CodeNoCapability, 401, StatusUnauthenticated, false, "write caveats as docs/spec/token.md shows"},
	{ReasonCaveatMissing, CodeNoCapability, 401, StatusUnauthenticated, false, "a token needs tenant, scope and exp caveats"},
	{ReasonRevoked, CodeNoCapability, 401, StatusUnauthenticated, false, "obtain a new token"},
	{ReasonAudience, CodeNoCapability, 401, StatusUnauthenticated, false, "attach a token made for this server"},
	{ReasonPresenter, CodeNoCapability, 401, StatusUnauthenticated, false, "present the token with the client key, or as the user, that it is bound to"},
	{ReasonScope, CodeNoCapability, 403, StatusDenied, false, "attach a token with the scope this verb needs"},
	{ReasonTenant, CodeNoCapability, 403, StatusDenied, false, "attach a token of the key's tenant"},
	{ReasonKIDCaveat, CodeNoCapability, 403, StatusDenied, false, "attach a token whose kid-prefix covers this key"},
	{ReasonPurposeCaveat, CodeNoCapability, 403, StatusDenied, false, "attach a token whose purpose-prefix covers this key"},

	{ReasonVerbCaveat, CodeNoCapability, 403, StatusDenied, false, "attach a token whose verb covers this"},
	{ReasonAlgCaveat, CodeNoCapability, 403, StatusDenied, false, "attach a token whose alg covers this key"},
	{ReasonBodyCaveat, CodeNoCapability, 403, StatusDenied, false, "send a smaller request, or attach a wider token"},
	{ReasonPayloadCaveat, CodeNoCapability, 403, StatusDenied, false, "send the payload that the token names"},
	{ReasonExport, CodeExportForbidden, 403, StatusDenied, false, "private keys never leave the KMS; use sign instead"},
	{ReasonPolicy, CodePolicyDenied, 403, StatusDenied, false, "ask the owner of the policy"},
	{ReasonPq, CodePqPolicy, 403, StatusDenied, false, "use a hybrid key, such as ed25519+ml-dsa-65, and all of its tracks"},
	{ReasonAttestation, CodeAttestationMissing, 403, StatusDenied, false, "use a key whose custodian can attest"},
	{ReasonNotFound, CodeNotFound, 404, StatusNotFound, false, "check the kid"},
	{ReasonOpIDReused, CodeConflict, 409, StatusConflict, false, "use a fresh op_id for a different request"},
	{ReasonConflict, CodeConflict, 409, StatusConflict, true, "read the key again and retry"},
	{ReasonStaleVersion, CodeStaleVersion, 409, StatusState, false, "name the head version, or none"},
	{ReasonDestroyed, CodeKeyDestroyed, 409, StatusState, false, "create a new key; the old one still verifies"},
	{ReasonVersions, CodeConflict, 409, StatusState, false, "create a new key; this one goes on as it is"},
	{ReasonTimeSkew, CodeTimeSkew, 400, StatusInvalid, false, "check the clocks"},
	{ReasonUnsupported, CodeUnsupported, 400, StatusUnsupported, false, "see docs/spec/algorithms.md for what this build and backend can do"},
	{ReasonTooLarge, CodeTooLarge, 413, StatusTooLarge, false, "send less, or raise KMS_MAX_PAYLOAD"},
	{ReasonBuffer, CodeTooLarge, 413, StatusBufferTooSmall, false, "pass a buffer of the size that out_len now holds"},
	{ReasonBackpressure, CodeBackpressure, 429, StatusBusy, true, "retry after the time given"},
	{ReasonArenaFull, CodeStoreUnavailable, 503, StatusUnavailable, true, "raise KMS_ARENA_SIZE, or retry later"},
	{ReasonTimeout, CodeTimeout, 504, StatusTimeout, true, "retry with the same op_id; a mutation may have taken effect"},
	{ReasonStore, CodeStoreUnavailable, 503, StatusUnavailable, true, "check the disk and the logs, then restart"},
	{ReasonStoreBusy, CodeStoreUnavailable, 503, StatusBusy, true, "another process has this store open; stop it, or use its endpoint"},
	{ReasonStoreMissing, CodeStoreUnavailable, 503, StatusUnavailable, false, "create the store with ron-kms init"},
	{ReasonStoreExists, CodeConflict, 409, StatusConflict, false, "choose another folder; nothing was changed"},
	{ReasonStoreNewer, CodeUnsupported, 400, StatusUnsupported, false, "use the version that wrote the store, or a later one"},
	{ReasonStoreTampered, CodeAuditIntegrity, 503, StatusUnavailable, false, "the store was changed from outside or damaged: see docs/runbooks/integrity.md"},
	{ReasonPassphrase, CodeStoreUnavailable, 503, StatusUnavailable, false, "check the passphrase"},
	{ReasonAuditWrite, CodeStoreUnavailable, 503, StatusUnavailable, true, "the audit log cannot be written: check the disk, then restart"},
	{ReasonAuditFull, CodeStoreUnavailable, 503, StatusUnavailable, true, "make space on the disk of the audit log; it goes on by itself"},
	{ReasonAudit, CodeAuditIntegrity, 503, StatusUnavailable, false, "writes are refused, verify goes on: see docs/runbooks/integrity.md"},
	{ReasonPolicyDown, CodePolicyUnavailable, 503, StatusUnavailable, true, "check the policy decision point"},
	{ReasonClock, CodeTimeSkew, 503, StatusUnavailable, true, "set the clock, or wait until it has caught up with the log"},
	{ReasonClosed, CodeStoreUnavailable, 503, StatusUnavailable, true, "the KMS is shutting down; retry elsewhere"},
	{ReasonHandle, CodeBadRequest, 400, StatusHandle, false, "use a handle that is still open"},
	{ReasonForked, CodeUnsupported, 400, StatusForked, false, "open the library after fork, or use fork and exec"},
	{ReasonABI, CodeUnsupported, 400, StatusABI, false, "compile against this library's header"},
	{ReasonSignature, CodeBadRequest, 400, StatusIntegrity, false, "the signature does not hold for this payload under this policy"},
	{ReasonUnwrap, CodeBadRequest, 400, StatusIntegrity, false, "check the key, the associated data and the envelope: one of them is not what it was"},
	{ReasonInternal, CodeInternal, 500, StatusInternal, false, "report this with the request_id"},
}

var byReason = func() map[Reason]Row {
	m := make(map[Reason]Row, len(table))
	for _, r := range table {
		m[r.Reason] = r
	}
	return m
}()

// Table is a copy of the error table, in its documented order.
func Table() []Row { return append([]Row(nil), table...) }

// An Error is any refusal or failure that leaves the engine. Message is one
// line for people; it never repeats the caller's input and may change.
type Error struct {
	Row
	Message    string
	RetryAfter time.Duration // when to try again, for retryable reasons; 0 = no advice
	Cause      error         // for logs of the operator; never sent to a caller
}

// NewError makes an error of the table's row for reason.
func NewError(reason Reason, message string) *Error {
	row, ok := byReason[reason]
	if !ok {
		row = byReason[ReasonInternal]
	}
	e := &Error{Row: row, Message: message}
	if row.HTTP == 429 || row.HTTP == 503 && row.Retryable {
		e.RetryAfter = time.Second
	}
	return e
}

// WrapError is NewError with the underlying cause.
func WrapError(reason Reason, message string, cause error) *Error {
	e := NewError(reason, message)
	e.Cause = cause
	return e
}

// Error is the text for an operator: with the cause.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s (%s): %s: %v", e.Code, e.Reason, e.Message, e.Cause)
	}
	return fmt.Sprintf("%s (%s): %s", e.Code, e.Reason, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// AsError returns err as an *Error; anything without a code is Internal, with
// its text kept for the operator only. nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return WrapError(ReasonInternal, "internal error", err)
}

// HasReason reports whether err is an *Error with this reason.
func HasReason(err error, reason Reason) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}

// Envelope is the body of every REST answer that is not 2xx.
type Envelope struct {
	Error EnvelopeError `json:"error"`
}

// EnvelopeError is the inside of an [Envelope].
type EnvelopeError struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`
	Retryable bool   `json:"retryable"`
	Hint      string `json:"hint"`
	TS        string `json:"ts"` // RFC 3339, UTC
	RequestID string `json:"request_id"`
}

// Envelope makes the REST body for e.
func (e *Error) Envelope(requestID string, now time.Time) Envelope {
	return Envelope{EnvelopeError{e.Code, e.Message, e.Retryable, e.Hint, now.UTC().Format(time.RFC3339), requestID}}
}
