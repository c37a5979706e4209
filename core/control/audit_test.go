package control

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/keymap"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/coretest"
)

// auditRig is a durable KMS that has signed n times for acme and once for evil.
func auditRig(t *testing.T, n int) (g *rig, cfg *config.Config, keys *notekey.Set, kid string) {
	t.Helper()
	cfg = coretest.Config(t)
	report := coretest.Init(t, cfg)
	keys, err := notekey.ParseSet(report.VerifierKey)
	if err != nil {
		t.Fatal(err)
	}
	k := coretest.Open(t, cfg, core.Options{})
	s := coretest.Session(t, k, "acme")
	kid = coretest.Create(t, k, s, "ed25519").KID
	for range n {
		coretest.Sign(t, k, s, kid, digest)
	}
	evil := coretest.Session(t, k, "evil")
	coretest.Sign(t, k, evil, coretest.Create(t, k, evil, "ed25519").KID, digest)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = coretest.Open(t, cfg, core.Options{})
	return &rig{t: t, k: k, h: newHandler(k, Options{}), logs: new(logBuffer)}, cfg, keys, base(t, kid)
}

func (g *rig) auditor(tenant string) string { return g.token(3600, tenant, capability.ScopeAudit) }

func (g *rig) mustGet(target, token string) result {
	g.t.Helper()
	res := g.call("GET", target, token, "")
	if res.status != http.StatusOK {
		g.t.Fatalf("%s: %d %s", target, res.status, res.body)
	}
	return res
}

func hashesOf(t *testing.T, texts []string) (hashes []tlog.Hash) {
	t.Helper()
	for _, text := range texts {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(b) != 32 {
			t.Fatalf("hash %q: %v", text, err)
		}
		hashes = append(hashes, tlog.Hash(b))
	}
	return hashes
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// treeOf checks the signatures of a checkpoint and reads it with package tlog.
func treeOf(t *testing.T, keys *notekey.Set, note string) tlog.Tree {
	t.Helper()
	text, _, err := keys.VerifyCosigned([]byte(note))
	if err != nil {
		t.Fatalf("%v in %q", err, note)
	}
	lines := strings.Split(text, "\n")
	n, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return tlog.Tree{N: n, Hash: tlog.Hash(unbase64(t, lines[2]))}
}

// who has the keys that init printed can check all that is served.
func TestAuditProofsVerify(t *testing.T) {
	t.Parallel()
	g, _, keys, kid := auditRig(t, 300)
	token := g.auditor("acme")

	res := g.mustGet(pathAuditCheckpoint, "")
	tree := treeOf(t, keys, res.body)
	if tree.N < 300 || res.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(res.header.Get("Content-Type"), "text/plain") {
		t.Errorf("%d records, %v", tree.N, res.header)
	}
	if got := strings.Fields(g.mustGet(pathAuditKeys, "").body); strings.Join(got, " ") != keys.String() {
		t.Errorf("keys %v", got)
	}

	for _, index := range []int64{5, 255, 256, 280} {
		p := decode[api.AuditProof](t, g.mustGet(fmt.Sprintf("%s?index=%d", pathAuditProof, index), token).body)
		tree := treeOf(t, keys, p.Checkpoint)
		leaf := tlog.RecordHash(unbase64(t, p.RecordB64))
		if err := tlog.CheckRecord(hashesOf(t, p.Hashes), tree.N, tree.Hash, index, leaf); err != nil || p.Size != uint64(tree.N) {
			t.Errorf("record %d: %v", index, err)
		}
		if p.LeafHash != base64.StdEncoding.EncodeToString(leaf[:]) || !strings.Contains(string(p.Record), `"key_id":"`+kid+`"`) {
			t.Errorf("record %d: %s", index, p.Record)
		}
		var tp proof.TLogProof
		for _, r := range []*http.Request{request("GET", fmt.Sprintf("%s?index=%d&format=tlog-proof", pathAuditProof, index), token, ""), accepting(fmt.Sprintf("%s?index=%d", pathAuditProof, index), token)} {
			res := g.do(r)
			if err := tp.Unmarshal([]byte(res.body)); err != nil {
				t.Fatalf("%v in %s", err, res.body)
			}
			tree := treeOf(t, keys, string(tp.Checkpoint))
			var hashes []tlog.Hash
			for _, h := range tp.Hashes {
				hashes = append(hashes, h)
			}
			if err := tlog.CheckRecord(hashes, tree.N, tree.Hash, int64(tp.Index), tlog.RecordHash(tp.ExtraData)); err != nil || int64(tp.Index) != index {
				t.Errorf("tlog-proof of %d: %v", index, err)
			}
		}
	}

	// A kept checkpoint of an earlier size: the tree of that size, and that the log continues it.
	c := decode[api.AuditConsistency](t, g.mustGet(pathAuditConsistency+"?from=123&to=290", "").body)
	full := decode[api.AuditConsistency](t, g.mustGet(pathAuditConsistency+"?from=290", "").body)
	tree = treeOf(t, keys, full.Checkpoint)
	reader := tiles.HashReader(urlSource{g}, uint64(tree.N), tree.Hash) // checks each tile that it fetches
	roots := make(map[int64]tlog.Hash)
	for _, n := range []int64{123, 290} {
		h, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		roots[n] = h
	}
	if err := tlog.CheckTree(hashesOf(t, c.Hashes), 290, roots[290], 123, roots[123]); err != nil || c.To != 290 {
		t.Errorf("123 to 290: %v", err)
	}
	if err := tlog.CheckTree(hashesOf(t, full.Hashes), tree.N, tree.Hash, 290, roots[290]); err != nil || full.To != uint64(tree.N) {
		t.Errorf("290 to the end: %v", err)
	}
	p := decode[api.AuditProof](t, g.mustGet(pathAuditProof+"?index=7&size=123", token).body)
	if err := tlog.CheckRecord(hashesOf(t, p.Hashes), 123, roots[123], 7, tlog.RecordHash(unbase64(t, p.RecordB64))); err != nil || p.Size != 123 {
		t.Errorf("record 7 of 123: %v", err)
	}

	if res := g.mustGet(prefixTile+"0/000", ""); len(res.body) != 8192 || res.header.Get("Cache-Control") != forever || res.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("a full tile: %d bytes, %v", len(res.body), res.header)
	}
	if res := g.mustGet(prefixTile+"0/001.p/9", ""); len(res.body) != 9*32 || res.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a partial tile: %d bytes, %v", len(res.body), res.header)
	}
	bundle := g.mustGet(prefixTile+"entries/000", g.auditor(core.OperatorTenant))
	records, err := tiles.Split([]byte(bundle.body), 256)
	if err != nil || string(records[7]) != string(unbase64(t, p.RecordB64)) || bundle.header.Get("Cache-Control") != "no-store" {
		t.Errorf("bundle: %v %v", err, bundle.header)
	}
}

func accepting(target, token string) *http.Request {
	r := request("GET", target, token, "")
	r.Header.Set("Accept", "text/plain")
	return r
}

// urlSource reads tiles over HTTP.
type urlSource struct{ g *rig }

func (s urlSource) ReadTile(name string) ([]byte, error) {
	res := s.g.call("GET", pathAudit+name, "", "")
	if res.status != 200 {
		return nil, fmt.Errorf("%s: %d: %w", name, res.status, os.ErrNotExist)
	}
	return []byte(res.body), nil
}

// a tenant proves how many records its key has, and what the
// signed log says is what it says.
func TestAuditKeyProof(t *testing.T) {
	t.Parallel()
	g, _, keys, kid := auditRig(t, 20)
	target := pathAuditKey + "?kid=" + strings.ReplaceAll(kid, "/", "%2F")
	for _, token := range []string{g.auditor("acme"), g.auditor(core.OperatorTenant), g.token(3600, "acme", capability.ScopeAudit)} {
		p := decode[api.AuditKeyProof](t, g.mustGet(target, token).body)
		tree := treeOf(t, keys, p.Map.Checkpoint)
		raw := unbase64(t, p.Map.RecordB64)
		if err := tlog.CheckRecord(hashesOf(t, p.Map.Hashes), tree.N, tree.Hash, int64(p.Map.Index), tlog.RecordHash(raw)); err != nil {
			t.Fatal(err)
		}
		r, err := audit.ParseRecord(raw)
		if err != nil || r.Kind != audit.KindMap || r.Ref != p.MapSize || r.Count != p.Keys || base64.StdEncoding.EncodeToString(r.InputHash[:]) != p.MapRoot {
			t.Fatalf("%+v, %v", r, err)
		}
		var path [][32]byte
		for _, h := range hashesOf(t, p.Hashes) {
			path = append(path, h)
		}
		state := keymap.State{Seq: p.Seq, Last: p.LastIndex + 1, Effect: p.Effect}
		if err := keymap.VerifyProof(r.InputHash, r.Count, p.Slot, kid, state, path); err != nil {
			t.Fatal(err)
		}
		if p.KID != kid || p.Seq != 22 || p.Effect == 0 { // intent, create, 20 signatures
			t.Errorf("%+v", p)
		}
	}
	// A token for this key alone is enough here, and for nothing else.
	keyOnly := coretest.Token(t, g.k, "acme", []string{capability.ScopeAudit}, "kid-prefix="+kid)
	g.mustGet(target, keyOnly)
	for _, other := range []string{pathAuditRecords, pathAuditProof + "?index=5", strings.Replace(target, kid[len(kid)-4:], "ffff", 1)} {
		wantRefusal(t, g.call("GET", other, keyOnly, ""), 403, api.CodeNoCapability)
	}
	unknown := strings.Replace(target, kid[len(kid)-4:], "ffff", 1)
	wantRefusal(t, g.call("GET", unknown, g.auditor("acme"), ""), 404, api.CodeNotFound)
	wantRefusal(t, g.call("GET", unknown, g.auditor("evil"), ""), 403, api.CodeNoCapability) // before it is looked up
	wantRefusal(t, g.call("GET", target, g.auditor("evil"), ""), 403, api.CodeNoCapability)
}

// who may read what. No tenant sees a byte of another's records.
func TestAuditTenants(t *testing.T) {
	t.Parallel()
	g, _, _, kid := auditRig(t, 5)
	tenants := []string{"acme", "evil"}
	var size uint64
	for next := uint64(0); ; {
		res := g.mustGet(fmt.Sprintf("%s?from=%d&limit=3", pathAuditRecords, next), g.auditor(core.OperatorTenant))
		n, err := strconv.ParseUint(res.header.Get(headerNext), 10, 64)
		if err != nil || strings.Count(res.body, "\n") != int(n-next) || n-next > 3 {
			t.Fatalf("next %d after %d: %v in %s", n, next, err, res.body)
		}
		if n == next {
			break
		}
		next, size = n, n
	}
	owned := 0
	for i := range size {
		target := fmt.Sprintf("%s?index=%d", pathAuditProof, i)
		all := g.call("GET", target, g.auditor(core.OperatorTenant), "")
		for _, tenant := range tenants {
			res := g.call("GET", target, g.auditor(tenant), "")
			if all.status == 200 && strings.Contains(string(decode[api.AuditProof](t, all.body).Record), `"tenant":"`+tenant+`"`) {
				owned++
				if res.status != 200 {
					t.Errorf("%s does not see its record %d: %d", tenant, i, res.status)
				}
				continue
			}
			wantRefusal(t, res, 404, api.CodeNotFound)
			beyond := g.call("GET", pathAuditProof+"?index=999999", g.auditor(tenant), "")
			if a, b := decode[api.Envelope](t, res.body).Error, decode[api.Envelope](t, beyond.body).Error; a.Message != b.Message || a.Hint != b.Hint {
				t.Errorf("%+v for a record of others, %+v beyond the end", a, b)
			}
		}
	}
	if owned < 10 {
		t.Fatalf("only %d records of tenants", owned)
	}
	for _, tenant := range tenants {
		other := tenants[1-slices.Index(tenants, tenant)]
		body := g.mustGet(pathAuditRecords+"?limit=1000", g.auditor(tenant)).body
		if !strings.Contains(body, `"tenant":"`+tenant+`"`) || strings.Contains(body, other+"/") || strings.Contains(body, `"`+other+`"`) || strings.Contains(body, `"kind":"open"`) {
			t.Errorf("%s sees %s", tenant, body)
		}
		wantRefusal(t, g.call("GET", prefixTile+"entries/000.p/5", g.auditor(tenant), ""), 403, api.CodeNoCapability)
	}
	public := g.mustGet(pathAuditCheckpoint, "").body + g.mustGet(prefixTile+"0/000.p/9", "").body + g.mustGet(pathAuditConsistency+"?from=3", "").body
	if strings.Contains(public, "acme") || strings.Contains(public, kid) {
		t.Error("what anybody may read names a tenant")
	}
}

// the matrix of tokens.
func TestAuditTokens(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	kid := base(t, g.create("ed25519"))
	for _, target := range []string{
		pathAuditProof + "?index=1", pathAuditKey + "?kid=" + strings.ReplaceAll(kid, "/", "%2F"), pathAuditRecords, prefixTile + "entries/000.p/1",
		pathAuditProof + "?bad", pathAuditRecords + "?limit=x", // who it is comes first
	} {
		for name, token := range map[string]string{"none": "", "garbage": "x", "expired": g.token(-60, "ron-kms", capability.ScopeAudit)} {
			if res := g.call("GET", target, token, ""); res.status != 401 {
				t.Errorf("%s with %s: %d", target, name, res.status)
			} else {
				wantRefusal(t, res, 401, api.CodeNoCapability)
			}
		}
		if strings.Contains(target, "bad") || strings.Contains(target, "limit=x") {
			continue
		}
		for _, scope := range capability.ScopeList() {
			if scope != capability.ScopeAudit {
				wantRefusal(t, g.call("GET", target, g.token(3600, "ron-kms", scope), ""), 403, api.CodeNoCapability)
			}
		}
		g.mustGet(target, g.auditor(core.OperatorTenant))
	}
	if text := g.call("GET", pathMetrics, "", "").body; !strings.Contains(text, `kms_ops_total{alg="none",op="audit_records",result="NoCapability"}`) ||
		!strings.Contains(text, `kms_ops_total{alg="none",op="audit_proof",result="ok"}`) {
		t.Error("reads are not counted")
	}
	// Refusals of those who are known are on record; reads are not.
	body := g.mustGet(pathAuditRecords+"?limit=1000", g.auditor(core.OperatorTenant)).body
	if !strings.Contains(body, `"kind":"denied"`) || !strings.Contains(body, `"op":"audit_records"`) || strings.Contains(body, `"op":"audit_records","tenant":"ron-kms","result":"ok"`) {
		t.Errorf("records: %s", body)
	}
}

// The operator's tenant has no keys: nobody else's token may be mistaken for its.
func TestOperatorTenantIsReserved(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.token(3600, core.OperatorTenant, capability.ScopeList()...)
	res := g.call("POST", pathKeys, token, `{"op_id":"7f0c1d52-66a5-4a0c-8c3f-0f2ad6c9a1b1","tenant":"ron-kms","purpose":"p","alg":"ed25519"}`)
	wantRefusal(t, res, 403, api.CodePolicyDenied)
	if list := decode[api.ListResponse](t, g.mustGet(pathKeys+"?tenant=ron-kms", token).body); len(list.Keys) > 0 {
		t.Errorf("%d keys", len(list.Keys))
	}
}

// queries and names that are not exactly as they should be.
func TestAuditMalformed(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	token := g.auditor(core.OperatorTenant)
	for target, status := range map[string]int{
		pathAuditCheckpoint + "?x=1": 400, pathAuditCheckpoint + "?cosigned=0": 400, pathAuditCheckpoint + "?cosigned=1": 404, pathAuditKeys + "?all=1": 400,
		pathAuditConsistency: 400, pathAuditConsistency + "?from=0": 400, pathAuditConsistency + "?from=2&to=1": 400, pathAuditConsistency + "?from=01": 400,
		pathAuditConsistency + "?from=1&to=0": 400, pathAuditConsistency + "?from=99999": 404, pathAuditConsistency + "?from=1&to=99999": 404,
		pathAuditConsistency + "?from=18446744073709551615": 400, pathAuditConsistency + "?from=1&from=1": 400,
		pathAuditProof: 400, pathAuditProof + "?index=-1": 400, pathAuditProof + "?index=1e3": 400, pathAuditProof + "?index=99999": 404,
		pathAuditProof + "?index=0&size=0": 400, pathAuditProof + "?index=0&size=99999": 404, pathAuditProof + "?index=1&size=1": 404,
		pathAuditProof + "?index=0&format=pem": 400, pathAuditProof + "?index=0&size=1&format=tlog-proof": 400, pathAuditProof + "?index=0&size=1&cosigned=1": 400,
		pathAuditProof + "?index=0&cosigned=1": 404,
		pathAuditKey:                           400, pathAuditKey + "?kid=acme": 400, pathAuditRecords + "?limit=0": 400, pathAuditRecords + "?limit=1001": 400,
		pathAuditRecords + "?from=x": 400, pathAuditRecords + "?from=99999": 200,
		prefixTile + "0/000": 404, prefixTile + "0/000.p/1": 200, prefixTile + "0/000.p/1?x=1": 400, prefixTile + "0/000.p/01": 404, prefixTile + "0/000.p/256": 404,
		prefixTile + "0/../entries/000.p/1": 404, prefixTile + "entries%2F000.p/1": 404, prefixTile + "0/%30%30%30.p/1": 404, prefixTile + "8/000.p/1": 404,
		prefixTile + "0//000.p/1": 404, prefixTile: 404, prefixTile + "entries/": 404, prefixTile + "entries/000": 404, prefixTile + "entries/../../checkpoint": 404,
		prefixTile + "0/x072/x057/x594/x037/x927/935": 404, pathAudit: 404, pathAudit + "x": 404, pathAuditProof + "/": 404,
	} {
		res := g.call("GET", target, token, "")
		if res.status != status {
			t.Errorf("%s: %d, want %d: %s", target, res.status, status, res.body)
		} else if status == 400 {
			wantRefusal(t, res, 400, api.CodeBadRequest)
		} else if status == 404 {
			wantRefusal(t, res, 404, api.CodeNotFound)
		}
	}
	for _, e := range auditEndpoints {
		wantRefusal(t, g.call("POST", strings.Replace(strings.Replace(e.pattern, "<L>", "0", 1), "<N>[.p/<W>]", "000.p/1", 1), token, `{}`), 405, api.CodeBadRequest)
	}
	wantRefusal(t, g.call("GET", pathAuditRecords, token, "{}"), 400, api.CodeBadRequest)
	if err := g.k.Close(); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, g.call("GET", pathAuditCheckpoint, "", ""), 503, api.CodeStoreUnavailable)
}

// a changed byte of the packed log under a running server gives an
// error of the server, never a wrong proof; then writes are refused.
func TestAuditDamageOverHTTP(t *testing.T) {
	t.Parallel()
	g, cfg, keys, _ := auditRig(t, 300)
	token, operator := g.auditor("acme"), g.auditor(core.OperatorTenant)
	old := make(map[string]string)
	targets := []string{prefixTile + "0/000", prefixTile + "entries/000"}
	for _, target := range targets {
		old[target] = g.mustGet(target, operator).body
	}
	refused := 0
	for _, name := range []string{"level-0", "data-00000000"} {
		path := filepath.Join(cfg.Dir, "audit", name)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(b); at += len(b) / 60 {
			if _, err := f.WriteAt([]byte{b[at] ^ 0x20}, int64(at)); err != nil {
				t.Fatal(err)
			}
			res := g.call("GET", pathAuditProof+"?index=9", token, "")
			if res.status == 200 {
				p := decode[api.AuditProof](t, res.body)
				tree := treeOf(t, keys, p.Checkpoint)
				if err := tlog.CheckRecord(hashesOf(t, p.Hashes), tree.N, tree.Hash, 9, tlog.RecordHash(unbase64(t, p.RecordB64))); err != nil {
					t.Errorf("%s at %d: %v", name, at, err)
				}
			} else {
				wantRefusal(t, res, 503, api.CodeAuditIntegrity)
				refused++
			}
			for _, target := range targets {
				if res := g.call("GET", target, operator, ""); res.status == 200 && res.body != old[target] {
					t.Errorf("%s at %d: a wrong %s", name, at, target)
				} else if res.status != 200 {
					wantRefusal(t, res, 503, api.CodeAuditIntegrity)
					refused++
				}
			}
			if _, err := f.WriteAt(b[at:at+1], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refused < 50 {
		t.Errorf("only %d refusals", refused)
	}
	if r := g.k.Ready(); r.Ready || r.Reason != string(api.ReasonAudit) {
		t.Errorf("%+v", r)
	}
	// Once however often it was met; the scrubber may have met it too.
	if text := g.call("GET", pathMetrics, "", "").body; !strings.Contains(text, "\nkms_audit_integrity_failed_total 1\n") &&
		!strings.Contains(text, "\nkms_audit_integrity_failed_total 2\n") {
		t.Error("the verdict is not counted")
	}
	if res := g.call("GET", pathAuditProof+"?index=9", token, ""); res.status != 200 {
		t.Errorf("what is right again is not served: %d", res.status)
	}
}

// without a log there is nothing to read, and the keys stay known.
func TestAuditOfRefusedLog(t *testing.T) {
	t.Parallel()
	g, cfg, keys, _ := auditRig(t, 3)
	if err := g.k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "audit", "head")); err != nil {
		t.Fatal(err)
	}
	k := coretest.Open(t, cfg, core.Options{})
	g = &rig{t: t, k: k, h: newHandler(k, Options{}), logs: new(logBuffer)}
	for _, target := range []string{pathAuditCheckpoint, pathAuditConsistency + "?from=1", prefixTile + "0/000.p/1", pathAuditProof + "?index=1", pathAuditRecords} {
		wantRefusal(t, g.call("GET", target, g.auditor(core.OperatorTenant), ""), 503, api.CodeAuditIntegrity)
	}
	wantRefusal(t, g.call("GET", pathAuditRecords, g.token(3600, "acme", "kms:read"), ""), 403, api.CodeNoCapability)
	if got := strings.Fields(g.mustGet(pathAuditKeys, "").body); strings.Join(got, " ") != keys.String() {
		t.Errorf("keys %v", got)
	}
}

// docs/spec/rest.md has a line for each read of the log.
func TestAuditIsDocumented(t *testing.T) {
	t.Parallel()
	spec, err := os.ReadFile("../../docs/spec/rest.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range auditEndpoints {
		if !strings.Contains(string(spec), "\n| `"+e.method+" "+e.pattern+"` |") {
			t.Errorf("docs/spec/rest.md has no line for %s", e.pattern)
		}
	}
}
