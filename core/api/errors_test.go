package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/api"
)

const errorsSpec = "../../docs/spec/errors.md"

// errorTable prints the table as docs/spec/errors.md has it.
func errorTable() string {
	var b strings.Builder
	b.WriteString("| reason | code | HTTP | C status | retryable | hint |\n|---|---|---|---|---|---|\n")
	for _, r := range api.Table() {
		retry := "no"
		if r.Retryable {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %d | `%s` (%d) | %s | %s |\n", r.Reason, r.Code, r.HTTP, r.Status, r.Status, retry, r.Hint)
	}
	return b.String()
}

// statusTable prints the C statuses as docs/spec/errors.md has them.
func statusTable() string {
	var b strings.Builder
	b.WriteString("| number | name |\n|---|---|\n")
	for n := range api.Statuses {
		prefix := "RONKMS_ERR_"
		if n == 0 {
			prefix = "RONKMS_"
		}
		fmt.Fprintf(&b, "| %d | `%s%s` |\n", n, prefix, api.Status(n))
	}
	return b.String()
}

// the table that clients branch on is the documented one. Rows
// are added; a reason, a code or a number never changes its meaning.
func TestErrorTableIsDocumented(t *testing.T) {
	t.Parallel()
	spec, err := os.ReadFile(errorsSpec)
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range map[string]string{"reasons": errorTable(), "statuses": statusTable()} {
		if !strings.Contains(string(spec), "\n"+table+"\n") {
			t.Errorf("docs/spec/errors.md does not have this table of %s:\n%s", name, table)
		}
	}
}

// rows agree with themselves.
func TestErrorTableIsSound(t *testing.T) {
	t.Parallel()
	word := regexp.MustCompile(`^[a-z0-9]+([-_][a-z0-9]+)*$`)
	seen := make(map[api.Reason]bool)
	for _, r := range api.Table() {
		if seen[r.Reason] {
			t.Errorf("%s is there twice", r.Reason)
		}
		seen[r.Reason] = true
		if !word.MatchString(string(r.Reason)) {
			t.Errorf("%q is no word for a metric label", r.Reason)
		}
		if r.HTTP < 400 || r.HTTP > 599 || r.Status == api.StatusOK || r.Status.String() == "UNKNOWN" || r.Code == "" {
			t.Errorf("%s: %+v", r.Reason, r)
		}
		if r.Hint == "" || strings.ContainsAny(r.Hint, "\n|") {
			t.Errorf("%s: hint %q", r.Reason, r.Hint)
		}
		if r.Retryable && r.HTTP != 409 && r.HTTP != 429 && r.HTTP != 503 && r.HTTP != 504 {
			t.Errorf("%s: %d is not to be retried", r.Reason, r.HTTP)
		}
		if r.HTTP == 429 && !r.Retryable {
			t.Errorf("%s: 429 without a retry", r.Reason)
		}
		e := api.NewError(r.Reason, "m")
		if e.Row != r || !api.HasReason(fmt.Errorf("x: %w", e), r.Reason) {
			t.Errorf("NewError(%s) is %+v", r.Reason, e.Row)
		}
		if wait := r.HTTP == 429 || r.HTTP == 503 && r.Retryable; (e.RetryAfter >= time.Second) != wait {
			t.Errorf("%s: RetryAfter %v", r.Reason, e.RetryAfter)
		}
	}
	if e := api.NewError("no such reason", "m"); e.Reason != api.ReasonInternal {
		t.Errorf("an unknown reason became %s", e.Reason)
	}
	api.Table()[0].HTTP = 1
	if api.Table()[0].HTTP == 1 {
		t.Error("Table is not a copy")
	}
	if s := api.Status(-1).String() + api.Status(api.Statuses).String(); s != "UNKNOWNUNKNOWN" {
		t.Errorf("statuses outside the table: %s", s)
	}
}

// the envelope is exactly this JSON.
func TestEnvelope(t *testing.T) {
	t.Parallel()
	e := api.WrapError(api.ReasonScope, "scope 'kms:sign' required", errors.New("secret cause"))
	at := time.Date(2025, 10, 9, 22, 33, 11, 5, time.FixedZone("", 2*3600))
	b, err := api.Encode(e.Envelope("r-abc123", at))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"error":{"code":"NoCapability","message":"scope 'kms:sign' required","retryable":false,` +
		`"hint":"attach a token with the scope this verb needs","ts":"2025-10-09T20:33:11Z","request_id":"r-abc123"}}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	if !strings.Contains(e.Error(), "secret cause") || !errors.Is(e, e.Cause) {
		t.Errorf("the operator does not see the cause: %v", e)
	}
	var env api.Envelope
	if err := json.Unmarshal(b, &env); err != nil || env.Error.Code != api.CodeNoCapability {
		t.Errorf("%+v, %v", env, err)
	}
}

// What has no code is Internal, and its text is the operator's alone.
func TestAsError(t *testing.T) {
	t.Parallel()
	if api.AsError(nil) != nil {
		t.Error("nil became an error")
	}
	known := api.NewError(api.ReasonNotFound, "m")
	if api.AsError(fmt.Errorf("x: %w", known)) != known {
		t.Error("a known error was replaced")
	}
	e := api.AsError(errors.New("canary"))
	b, err := api.Encode(e.Envelope("r", time.Now()))
	if e.Reason != api.ReasonInternal || err != nil || strings.Contains(string(b), "canary") {
		t.Errorf("%v: %s, %v", e, b, err)
	}
}
