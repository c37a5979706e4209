package control

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core/api"
)

const canary = "canary-5e0b7a"

// names, types and label sets, as Prometheus sees them.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	if text := g.call("GET", pathMetrics, "", "").body; !strings.Contains(text, "\nkms_audit_integrity_failed_total 0\n") {
		t.Error("kms_audit_integrity_failed_total is not there at 0")
	}
	kid := g.create("ed25519")
	g.create("ed25519+ml-dsa-65")
	g.call("POST", pathVerify, token, g.signed(kid))
	g.call("POST", pathKeys, token, `{`)
	g.k.Metrics().Attest.WithLabelValues("inmem").Inc() // nothing attests yet; the name is a promise

	res := g.call("GET", pathMetrics, "", "")
	if res.status != 200 || !strings.HasPrefix(res.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%d %v", res.status, res.header)
	}
	got := scrape(t, res.body)
	want := map[string]string{
		"kms_ops_total": "counter alg,op,result", "kms_latency_seconds": "histogram alg,op", "kms_reject_total": "counter reason",
		"kms_keys_total": "gauge alg,purpose,tenant", "kms_attest_total": "counter backend",
		"kms_audit_integrity_failed_total": "counter ", "kms_audit_lost_total": "counter ", "kms_audit_scrubbed_bundles_total": "counter ",
		"kms_audit_size": "gauge ", "kms_audit_checkpoint_size": "gauge ", "kms_audit_pending_records": "gauge ", "kms_audit_full": "gauge ",
		"kms_pq_mode": "gauge mode,phase", "kms_pq_rollout_percent": "gauge ",
	}
	if !maps.Equal(got, want) {
		t.Errorf("metrics are\n%v, want\n%v", got, want)
	}
	for _, line := range []string{
		`kms_ops_total{alg="ed25519",op="create",result="ok"} 1`,
		`kms_ops_total{alg="ed25519",op="sign",result="ok"} 1`,
		`kms_keys_total{alg="ed25519",purpose="audit",tenant="acme"} 1`,
		`kms_keys_total{alg="hybrid",purpose="audit",tenant="acme"} 1`,
		`kms_reject_total{reason="json"} 1`,
		`kms_pq_mode{mode="or",phase="0"} 1`,
		`kms_pq_rollout_percent 100`,
	} {
		if !strings.Contains(res.body, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	g.call("POST", pathKeys+"/"+base(t, kid)+"/destroy", token, opBody())
	if text := g.call("GET", pathMetrics, "", "").body; !strings.Contains(text, `kms_keys_total{alg="ed25519",purpose="audit",tenant="acme"} 0`) {
		t.Error("kms_keys_total counts a destroyed key")
	}
}

var sampleLine = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? `)

// scrape is type and label names of each kms_ metric.
func scrape(t *testing.T, text string) map[string]string {
	types, labels := make(map[string]string), make(map[string]string)
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		if name, kind, ok := strings.Cut(strings.TrimPrefix(s.Text(), "# TYPE "), " "); ok && strings.HasPrefix(s.Text(), "# TYPE kms_") {
			types[name] = kind
			continue
		}
		m := sampleLine.FindStringSubmatch(s.Text())
		if m == nil || !strings.HasPrefix(m[1], "kms_") {
			continue
		}
		name := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); types[base] == "histogram" {
				name = base
			}
		}
		var names []string
		for _, l := range strings.Split(m[2], ",") {
			if n, _, ok := strings.Cut(l, "="); ok && n != "le" {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		set := strings.Join(names, ",")
		if old, ok := labels[name]; ok && old != set {
			t.Errorf("%s has labels %s and %s", name, old, set)
		}
		labels[name] = set
	}
	out := make(map[string]string)
	for name, kind := range types {
		out[name] = kind + " " + labels[name]
	}
	return out
}

// hostile input makes no new label values.
func TestMetricCardinality(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.admin()
	hostile := func(i int) {
		s := fmt.Sprintf("x%d", i)
		g.call("POST", pathKeys, token, fmt.Sprintf(`{"op_id":%q,"tenant":"acme","purpose":%q,"alg":%q}`, uuid.NewString(), s, s))
		g.call("POST", pathKeys, token, fmt.Sprintf(`{"op_id":%q,"tenant":%q,"purpose":"p","alg":"ed25519"}`, uuid.NewString(), s))
		g.call("GET", "/"+s, token, "")
		g.call(strings.ToUpper(s), pathKeys, s, s)
		g.call("POST", pathSign, token, signBody("acme/"+s+"/"+s+"/"+uuid.NewString()))
	}
	series := func() int { return strings.Count(g.call("GET", pathMetrics, "", "").body, "\nkms_") }
	hostile(0)
	before := series()
	for i := range 50 {
		hostile(i + 1)
	}
	if after := series(); after != before {
		t.Errorf("%d series, then %d", before, after)
	}
}

// D-25: no text of a client, and no token, gets into a log, a
// metric, an error or an id.
func TestCanariesStayOut(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token, kid := g.admin(), g.create("ed25519")
	var answers strings.Builder
	send := func(r *http.Request) {
		res := g.do(r)
		answers.WriteString(res.body)
		for name, v := range res.header {
			fmt.Fprintln(&answers, name, v)
		}
	}
	for _, rt := range routes {
		target, body := g.sample(rt)
		for name := range decode[map[string]any](t, orEmpty(body)) {
			if name == "purpose" {
				continue // a valid one is a label of kms_keys_total, by the promise of its name
			}
			send(request(rt.method, target, token, fmt.Sprintf(`{%q:%q,`, name, canary)+without(t, body, name)+`}`))
		}
		send(request(rt.method, target, token, `{"`+canary+`":1}`))
		send(request(rt.method, target, canary, body))
		send(request(rt.method, target+"&"+canary+"="+canary, token, body))
		send(request(canary, target, token, body))
		send(request(rt.method, strings.Replace(target, "audit", canary+"%20", 1), token, body))
		for _, name := range []string{
			"X-Corr-Id", "X-Request-Id", "X-Correlation-Id", "Traceparent", "User-Agent", "Referer", "Content-Type", "Content-Encoding",
			"Accept", "Idempotency-Key", "If-Match", "If-None-Match", "Host", "X-Forwarded-For", "Origin", canary,
		} {
			r := request(rt.method, target, token, body)
			r.Header.Set(name, canary)
			r.Host, r.RemoteAddr = canary, canary
			send(r)
		}
	}
	send(request("GET", "/"+canary, token, ""))
	send(request("GET", pathKeys+"?tenant="+canary, token, ""))
	send(request("GET", pathKeys+"/"+canary+"/p/ed25519/"+uuid.NewString(), token, ""))
	logs, metrics := g.logs.String(), g.call("GET", pathMetrics, "", "").body
	for sink, text := range map[string]string{"answers": answers.String(), "logs": logs, "metrics": metrics} {
		if strings.Contains(strings.ToLower(text), canary) {
			at := strings.Index(strings.ToLower(text), canary)
			t.Errorf("a canary is in the %s: …%s…", sink, text[max(0, at-120):min(len(text), at+80)])
		}
		if strings.Contains(text, token) || strings.Contains(text, token[20:60]) {
			t.Errorf("a token is in the %s", sink)
		}
	}
	if strings.Contains(logs, base(t, kid)) || strings.Contains(logs, "acme") || strings.Contains(logs, digest) {
		t.Error("a kid, a tenant or a digest is in the logs")
	}
}

func orEmpty(body string) string {
	if body == "" {
		return "{}"
	}
	return body
}

// D-25: ids are made here; a correlation id is echoed if it is a UUID.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	kid, corr := g.create("ed25519"), uuid.NewString()
	r := request("POST", pathSign, g.admin(), signBody(kid))
	r.Header.Set("X-Corr-Id", corr)
	r.Header.Set(headerRequestID, "r-"+corr)
	res := g.do(r)
	if res.header.Get("X-Corr-Id") != corr {
		t.Errorf("X-Corr-ID %q", res.header.Get("X-Corr-Id"))
	}
	id, ok := strings.CutPrefix(res.header.Get(headerRequestID), "r-")
	if _, err := api.ParseUUID(id); !ok || err != nil || id == corr {
		t.Errorf("X-Request-ID %q", res.header.Get(headerRequestID))
	}
	lines := strings.Split(strings.TrimSpace(g.logs.String()), "\n")
	line := decode[map[string]any](t, lines[len(lines)-1])
	k, _ := api.ParseKID(kid)
	for name, want := range map[string]any{
		"level": "DEBUG", "method": "POST", "route": pathSign, "status": float64(200), "request_id": "r-" + id,
		"corr_id": corr, "kid_hash": kidHash(k),
	} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}
	if _, ok := line["duration"]; !ok || len(line) != 10 {
		t.Errorf("the line has other fields: %v", line)
	}
	for _, bad := range []string{"x", strings.ToUpper(corr), "{" + corr + "}", "urn:uuid:" + corr, strings.ReplaceAll(corr, "-", "")} {
		r := request("GET", "/healthz", "", "")
		r.Header.Set("X-Corr-Id", bad)
		if res := g.do(r); res.header.Get("X-Corr-Id") != "" {
			t.Errorf("%q is echoed", bad)
		}
	}
}

// what needs no token.
func TestOpenEndpoints(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	if res := g.call("GET", "/healthz", "", ""); res.status != 200 || res.body != `{"status":"ok"}` {
		t.Errorf("healthz: %d %s", res.status, res.body)
	}
	for _, target := range []string{"/readyz", "/readyz?for=verify"} {
		res := g.call("GET", target, "", "")
		if v := decode[map[string]any](t, res.body); res.status != 200 || v["ready"] != true || v["mode"] != "amnesia" || v["verify"] != true {
			t.Errorf("%s: %d %s", target, res.status, res.body)
		}
	}
	res := g.call("GET", "/version", "", "")
	if res.status != 200 || res.body != `{"version":"1.2.3","commit":"abc","go":"go1.26","abi":"0.1","mode":"amnesia"}` {
		t.Errorf("version: %d %s", res.status, res.body)
	}
	if err := g.k.Close(); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/readyz", "/readyz?for=verify"} {
		res := g.call("GET", target, "", "")
		if v := decode[map[string]any](t, res.body); res.status != 503 || v["ready"] != false || v["reason"] != "closed" || res.header.Get("Retry-After") < "1" {
			t.Errorf("closed %s: %d %s", target, res.status, res.body)
		}
	}
	wantRefusal(t, g.call("GET", pathKeys+"?tenant=acme", "x", ""), 503, api.CodeStoreUnavailable)
	if res := g.call("GET", "/healthz", "", ""); res.status != 200 {
		t.Errorf("healthz of a closed KMS: %d", res.status)
	}
}

// Every refusal of the table makes an envelope in agreement with it, with
// Retry-After where waiting helps.
func TestEveryReason(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for _, row := range api.Table() {
		x := &exchange{id: newRequestID()}
		a := g.h.refusal(x, api.NewError(row.Reason, "message"))
		header := make(http.Header)
		a.setHeader(header, x)
		wantRefusal(t, result{a.status, header, string(a.body)}, row.HTTP, row.Code)
		var e api.Envelope
		if err := json.Unmarshal(a.body, &e); err != nil || e.Error.Hint != row.Hint || e.Error.Retryable != row.Retryable {
			t.Errorf("%s: %s", row.Reason, a.body)
		}
	}
}
