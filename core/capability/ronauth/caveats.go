package ronauth

import (
	"slices"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/rustyonions/ron-kms/core/capability"
)

// facePath is the path that all of this server's verbs are under. A prefix
// that does not cover all of it stands for less than we could check.
const facePath = "/v1/kms/"

var (
	refuseUnknown        = capability.RefusalFor(capability.ReasonCaveatUnknown)
	refuseCaveat         = capability.RefusalFor(capability.ReasonCaveatMalformed)
	refuseMissing        = capability.RefusalFor(capability.ReasonCaveatMissing)
	refuseScope          = capability.RefusalFor(capability.ReasonScopeMissing)
	maxSeconds    uint64 = 253402300799
	maxBytes      uint64 = 1 << 30
)

// conditions says in our caveats what the token says. It never says less:
// what has no equal here is refused.
func (t *token) conditions(amnesia bool) ([]string, *capability.Refusal) {
	scopes, refusal := scopeCaveat(t.Scope.Methods)
	if refusal != nil {
		return nil, refuseMissing // no right at this server
	}
	list := []string{"tenant=" + t.TID, scopes}
	if p := t.Scope.Prefix; p != nil && !strings.HasPrefix(facePath, *p) {
		return nil, refuseScope
	}
	if n := t.Scope.MaxBytes; n != nil {
		list = append(list, bytesCaveat(*n))
	}
	for _, raw := range t.Caveats {
		text, refusal := translate(raw, amnesia)
		if refusal != nil {
			return nil, refusal
		}
		if text != "" {
			list = append(list, text)
		}
	}
	return list, nil
}

// translate says one caveat in ours, "" if it holds for every request.
func translate(raw []byte, amnesia bool) (string, *capability.Refusal) {
	var c struct {
		Name  string          `cbor:"t"`
		Value cbor.RawMessage `cbor:"v"`
	}
	if !canonical(raw, &c) {
		return "", refuseCaveat
	}
	var (
		n    uint64
		text string
		list []string
		flag bool
		rate struct {
			PerSecond uint32 `cbor:"per_s"`
			Burst     uint32 `cbor:"burst"`
		}
	)
	var value any
	switch c.Name {
	case "Exp", "Nbf", "BytesLe":
		value = &n
	case "Aud", "PathPrefix", "Tenant":
		value = &text
	case "Method":
		value = &list
	case "Amnesia":
		value = &flag
	case "Rate":
		value = &rate
	default:
		// IpCidr and GovPolicyDigest ask for what is not known here; nobody
		// here can read a Custom.
		return "", refuseUnknown
	}
	if !canonical(c.Value, value) {
		return "", refuseCaveat
	}
	switch c.Name {
	case "Exp":
		// "Never" is written as the largest number there is.
		return "exp=" + strconv.FormatUint(min(max(n, 1), maxSeconds), 10), nil
	case "Nbf":
		if n > maxSeconds {
			return "", refuseCaveat
		}
		if n == 0 {
			return "", nil
		}
		return "nbf=" + strconv.FormatUint(n, 10), nil
	case "BytesLe":
		return bytesCaveat(n), nil
	case "Aud":
		return "aud=" + text, nil
	case "Tenant":
		return "tenant=" + text, nil
	case "PathPrefix":
		if !strings.HasPrefix(facePath, text) {
			return "", refuseScope
		}
		return "", nil
	case "Method":
		return scopeCaveat(list)
	case "Amnesia":
		if flag != amnesia {
			return "", capability.RefusalFor(capability.ReasonAudience)
		}
		return "", nil
	}
	if rate.PerSecond == 0 || rate.Burst == 0 {
		return "", refuseCaveat
	}
	return "rate=" + number(rate.PerSecond) + "/" + number(rate.Burst), nil
}

func number(n uint32) string {
	return strconv.FormatUint(min(uint64(n), capability.MaxRate), 10)
}

// bytesCaveat makes a max-bytes. No request has fewer than two bytes, so 1
// says what 0 says; and none has more than maxBytes.
func bytesCaveat(n uint64) string {
	return "max-bytes=" + strconv.FormatUint(min(max(n, 1), maxBytes), 10)
}

// scopeCaveat makes a scope caveat of the methods that are scopes here; the
// others are rights elsewhere. Without one there is no right.
func scopeCaveat(methods []string) (string, *capability.Refusal) {
	known := capability.ScopeList()
	var scopes []string
	for _, m := range methods {
		if slices.Contains(known, m) {
			scopes = append(scopes, m)
		}
	}
	if len(scopes) == 0 {
		return "", refuseScope
	}
	c, err := capability.ScopeCaveat(scopes...)
	if err != nil {
		return "", refuseCaveat
	}
	return c.String(), nil
}
