package core

import (
	"context"
	"slices"
	"strings"

	"github.com/rustyonions/ron-kms/core/admit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
)

// A Verb is one line of the verb table: the same table stands behind REST, the
// C ABI's generic call, the command line, the metrics and the docs, so that a
// verb is on every face or on none.
type Verb struct {
	// Name is the verb's name on every face.
	Name string
	// Scopes are the capability scopes of which any one suffices.
	Scopes []string
	// Mutates says that the verb changes a key, needs an op_id and is done
	// once however often it is repeated.
	Mutates bool
	// DataPlane says that the C ABI has a typed function for it.
	DataPlane bool
	// Private says that the verb uses a private key: it is refused when the
	// store or its log is out of order. Verbs that mutate are too.
	Private bool
	// Request makes an empty request, Response an empty response.
	Request  func() api.Request
	Response func() any

	run func(*KMS, context.Context, *decided) (outcome, error)
}

// kind is the verb whose costs and metrics those of v are.
func (v *Verb) kind() string { return strings.TrimSuffix(v.Name, "_batch") }

// lane is which workers the verb needs. They are apart, so that a backend that
// hangs does not stop verification.
func (v *Verb) lane() admit.Lane {
	switch {
	case v.Mutates:
		return admit.LaneMutate
	case v.Private:
		return admit.LanePrivate
	case verifies(v):
		return admit.LanePublic
	}
	return admit.LaneNone
}

// verbs is the verb table, in the order of the docs. It is filled by init
// because its functions refer back to it through Do.
var verbs []*Verb

func init() {
	verbs = []*Verb{
		{
			Name: "create", Scopes: []string{capability.ScopeCreate, capability.ScopeRotate}, Mutates: true,
			Request: func() api.Request { return new(api.CreateRequest) }, Response: func() any { return new(api.CreateResponse) },
			run: (*KMS).create,
		},
		{
			Name: "rotate", Scopes: []string{capability.ScopeRotate}, Mutates: true,
			Request: func() api.Request { return new(api.RotateRequest) }, Response: func() any { return new(api.RotateResponse) },
			run: (*KMS).rotate,
		},
		{
			Name: "destroy", Scopes: []string{capability.ScopeDestroy}, Mutates: true,
			Request: func() api.Request { return new(api.DestroyRequest) }, Response: func() any { return new(api.DestroyResponse) },
			run: (*KMS).destroy,
		},
		{
			Name: "get", Scopes: []string{capability.ScopeRead},
			Request: func() api.Request { return new(api.GetRequest) }, Response: func() any { return new(api.GetResponse) },
			run: (*KMS).get,
		},
		{
			Name: "list", Scopes: []string{capability.ScopeRead},
			Request: func() api.Request { return new(api.ListRequest) }, Response: func() any { return new(api.ListResponse) },
			run: (*KMS).list,
		},
		{
			Name: "sign", Scopes: []string{capability.ScopeSign}, DataPlane: true, Private: true,
			Request: func() api.Request { return new(api.SignRequest) }, Response: func() any { return new(api.SignResponse) },
			run: (*KMS).sign,
		},
		{
			Name: "sign_batch", Scopes: []string{capability.ScopeSign}, DataPlane: true, Private: true,
			Request: func() api.Request { return new(api.SignBatchRequest) }, Response: func() any { return new(api.SignBatchResponse) },
			run: (*KMS).signBatch,
		},
		{
			Name: "verify", Scopes: []string{capability.ScopeVerify, capability.ScopeRead}, DataPlane: true,
			Request: func() api.Request { return new(api.VerifyRequest) }, Response: func() any { return new(api.VerifyResponse) },
			run: (*KMS).verify,
		},
		{
			Name: "verify_batch", Scopes: []string{capability.ScopeVerify, capability.ScopeRead}, DataPlane: true,
			Request: func() api.Request { return new(api.VerifyBatchRequest) }, Response: func() any { return new(api.VerifyBatchResponse) },
			run: (*KMS).verifyBatch,
		},
		{
			Name: "wrap", Scopes: []string{capability.ScopeWrap}, DataPlane: true, Private: true,
			Request: func() api.Request { return new(api.WrapRequest) }, Response: func() any { return new(api.WrapResponse) },
			run: (*KMS).wrap,
		},
		{
			Name: "unwrap", Scopes: []string{capability.ScopeUnwrap}, DataPlane: true, Private: true,
			Request: func() api.Request { return new(api.UnwrapRequest) }, Response: func() any { return new(api.UnwrapResponse) },
			run: (*KMS).unwrap,
		},
		{
			Name: "rewrap", Scopes: []string{capability.ScopeUnwrap}, DataPlane: true, Private: true,
			Request: func() api.Request { return new(api.RewrapRequest) }, Response: func() any { return new(api.RewrapResponse) },
			run: (*KMS).rewrap,
		},
		{
			Name: "derive", Scopes: []string{capability.ScopeDerive}, Mutates: true, Private: true,
			Request: func() api.Request { return new(api.DeriveRequest) }, Response: func() any { return new(api.DeriveResponse) },
			run: (*KMS).derive,
		},
		{
			// There is no export. The verb exists so that an attempt gets one
			// clear answer on every face and a record in the audit log.
			Name: "export", Scopes: capability.ScopeList(),
			Request: func() api.Request { return new(api.ExportRequest) }, Response: func() any { return new(api.ExportResponse) },
			run: func(*KMS, context.Context, *decided) (outcome, error) {
				return outcome{}, api.NewError(api.ReasonExport, "private keys are never exported")
			},
		},
	}
}

// Verbs is a copy of the verb table.
func Verbs() []*Verb { return slices.Clone(verbs) }

// VerbNamed finds a verb; ok is false if there is none of that name.
func VerbNamed(name string) (v *Verb, ok bool) {
	for _, v := range verbs {
		if v.Name == name {
			return v, true
		}
	}
	return nil, false
}
