package core_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

// modelAlgs has one of each kind, and all that sign.
var modelAlgs = append([]string{"aes-256-gcm", "x25519+ml-kem-768", "hkdf-sha256"}, algorithms...)

// modelKey is what the model knows of a key.
type modelKey struct {
	states []api.State // of version i+1
	whole  bool        // destroyed as a whole
	sigs   map[int][]api.Signature
	alg    *alg.Alg
	child  bool // derived
	sealed []sealed
}

// sealed is an envelope with the data key that must come out of it.
type sealed struct {
	version             int
	envelope, plaintext string
}

func newModelKey(name string) *modelKey {
	a, _ := alg.Lookup(name)
	return &modelKey{states: []api.State{api.StateActive}, sigs: make(map[int][]api.Signature), alg: a}
}

// uses is the code that an operation with a private key of version v, 0 for
// the head, must answer.
func (m *modelKey) uses(op alg.Op, v int) api.Code {
	n := v
	if n == 0 {
		n = m.head()
	}
	switch {
	case !m.alg.Allows(op):
		return api.CodeUnsupported
	case n > m.head():
		return api.CodeNotFound
	case m.states[n-1] == api.StateRetired:
		return api.CodeStaleVersion
	case m.states[n-1] == api.StateDestroyed:
		return api.CodeKeyDestroyed
	}
	return ""
}

// opens is the code that opening an envelope must answer.
func (m *modelKey) opens(e sealed) api.Code {
	switch {
	case m.whole:
		return api.CodeKeyDestroyed
	case m.states[e.version-1] == api.StateDestroyed:
		return api.CodeBadRequest
	}
	return ""
}

func (m *modelKey) head() int { return len(m.states) }

func (m *modelKey) set(version int, s api.State) {
	for i := range m.states {
		if (version == 0 || i+1 == version) && m.states[i] != api.StateDestroyed {
			m.states[i] = s
		}
	}
}

// Any sequence of operations and restarts does what a map would do: same
// states, same refusals, same answers to a repeated op_id; every signature goes on
// verifying, every envelope opens until its version is destroyed, and a child is
// derived once..
func TestModel(t *testing.T) {
	t.Parallel()
	dirs := t.TempDir()
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		cfg := config.Default()
		cfg.Dir = fmt.Sprintf("%s/%d", dirs, runs)
		cfg.ArenaSize, cfg.AuditSegmentSize = 1<<20, 64<<10
		Init(rapidTB{TB: t, rt: rt}, cfg)
		tb := rapidTB{TB: t, rt: rt}
		k := Open(tb, cfg, core.Options{})
		defer func() { k.Close(); os.RemoveAll(cfg.Dir) }()
		s := Session(tb, k, "acme")
		keys := make(map[string]*modelKey)
		var names []string
		children := make(map[string]string) // parent#vN and context to child
		type done struct {
			verb string
			req  api.Request
			kid  string
			head uint32
		}
		var ops []done
		pick := func() (string, *modelKey) {
			if len(names) == 0 {
				rt.Skip("no key yet")
			}
			name := rapid.SampledFrom(names).Draw(rt, "key")
			return name, keys[name]
		}
		version := func(m *modelKey) int { return rapid.IntRange(0, m.head()+1).Draw(rt, "version") }
		at := func(name string, v int) string {
			if v == 0 {
				return name
			}
			return fmt.Sprintf("%s#v%d", name, v)
		}
		check := func(what string, err error, want api.Code) {
			if Code(err) != want {
				rt.Fatalf("%s: %v, want %q", what, err, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) {
				if len(names) > 7 {
					rt.Skip("enough")
				}
				req := &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: rapid.SampledFrom(modelAlgs).Draw(rt, "alg")}
				c, err := Do[api.CreateResponse](k, s, "create", req)
				check("create", err, "")
				name := strings.TrimSuffix(c.KID, "#v1")
				names = append(names, name)
				keys[name] = newModelKey(req.Alg)
				ops = append(ops, done{"create", req, c.KID, 1})
			},
			"rotate": func(*rapid.T) {
				name, m := pick()
				v := version(m)
				req := &api.RotateRequest{OpID: uuid.NewString(), KID: at(name, v)}
				r, err := Do[api.RotateResponse](k, s, "rotate", req)
				switch {
				case m.whole:
					check("rotate", err, api.CodeKeyDestroyed)
				case v != 0 && v != m.head():
					check("rotate", err, api.CodeStaleVersion)
				case m.child:
					check("rotate", err, api.CodeUnsupported)
				default:
					check("rotate", err, "")
					m.set(0, api.StateRetired)
					m.states = append(m.states, api.StateActive)
					if int(r.Key.Head) != m.head() {
						rt.Fatalf("head %d, want %d", r.Key.Head, m.head())
					}
					ops = append(ops, done{"rotate", req, r.KID, r.Key.Head})
				}
			},
			"destroy": func(*rapid.T) {
				name, m := pick()
				v := version(m)
				req := &api.DestroyRequest{OpID: uuid.NewString(), KID: at(name, v)}
				d, err := Do[api.DestroyResponse](k, s, "destroy", req)
				if v > m.head() {
					check("destroy", err, api.CodeNotFound)
					return
				}
				check("destroy", err, "")
				m.set(v, api.StateDestroyed)
				m.whole = m.whole || v == 0
				ops = append(ops, done{"destroy", req, d.KID, d.Key.Head})
			},
			"sign": func(*rapid.T) {
				name, m := pick()
				v := version(m)
				r, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: at(name, v), PayloadB3: Digest(byte(len(names)))})
				n := v
				if n == 0 {
					n = m.head()
				}
				switch want := m.uses(alg.OpSign, v); {
				case want != "":
					check("sign", err, want)
				default:
					check("sign", err, "")
					if r.KID != at(name, n) {
						rt.Fatalf("signed as %s, want version %d", r.KID, n)
					}
					m.sigs[n] = r.Sigs
					if !Verify(tb, k, s, Digest(byte(len(names))), r.Sigs).OK || Verify(tb, k, s, Digest(0xee), r.Sigs).OK {
						rt.Fatal("the signature does not hold, or for anything")
					}
					m.sigs[n] = Must[api.SignResponse](tb, k, s, "sign", &api.SignRequest{KID: at(name, v), PayloadB3: Digest(0xaa)}).Sigs
				}
			},
			"wrap": func(*rapid.T) {
				name, m := pick()
				v := version(m)
				r, err := Do[api.WrapResponse](k, s, "wrap", &api.WrapRequest{KID: at(name, v), Size: 16})
				check("wrap", err, m.uses(alg.OpWrap, v))
				if err == nil {
					if r.KID != at(name, m.head()) {
						rt.Fatalf("wrapped to %s, want version %d", r.KID, m.head())
					}
					m.sealed = append(m.sealed, sealed{m.head(), r.WrappedB64, r.PlaintextKeyB64})
				}
			},
			"unwrap": func(*rapid.T) {
				name, m := pick()
				if len(m.sealed) == 0 {
					rt.Skip("nothing to open")
				}
				e := rapid.SampledFrom(m.sealed).Draw(rt, "envelope")
				r, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: name, WrappedB64: e.envelope})
				check("unwrap", err, m.opens(e))
				if err == nil && (r.PlaintextKeyB64 != e.plaintext || r.KID != at(name, e.version)) {
					rt.Fatalf("an envelope of version %d opened as %s", e.version, r.KID)
				}
			},
			"rewrap": func(*rapid.T) {
				name, m := pick()
				if len(m.sealed) == 0 {
					rt.Skip("nothing to move")
				}
				e := rapid.SampledFrom(m.sealed).Draw(rt, "envelope")
				r, err := Do[api.RewrapResponse](k, s, "rewrap", &api.RewrapRequest{KID: name, WrappedB64: e.envelope})
				want := m.opens(e)
				if want == "" {
					want = m.uses(alg.OpWrap, 0)
				}
				check("rewrap", err, want)
				if err == nil {
					if r.KID != at(name, m.head()) || r.Previous != at(name, e.version) {
						rt.Fatalf("moved from %s to %s, want from %d to %d", r.Previous, r.KID, e.version, m.head())
					}
					m.sealed = append(m.sealed, sealed{m.head(), r.WrappedB64, e.plaintext})
				}
			},
			"derive": func(*rapid.T) {
				name, m := pick()
				v := version(m)
				req := &api.DeriveRequest{
					OpID: uuid.NewString(), KID: at(name, v), Context: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "context"),
					Alg: rapid.SampledFrom([]string{"ed25519", "aes-256-gcm"}).Draw(rt, "child"),
				}
				r, err := Do[api.DeriveResponse](k, s, "derive", req)
				want := m.uses(alg.OpDerive, v)
				from := at(name, m.head()) + " " + req.Context
				known := children[from]
				if want == "" && known != "" {
					switch c := keys[known]; {
					case c.alg.Name() != req.Alg:
						want = api.CodeConflict
					case c.states[0] == api.StateDestroyed:
						want = api.CodeKeyDestroyed
					}
				}
				check("derive", err, want)
				if err != nil {
					return
				}
				child := Base(r.KID)
				if r.Parent != at(name, m.head()) || known != "" && known != child || known == "" && keys[child] != nil {
					rt.Fatalf("derived %s from %s, known is %q", r.KID, r.Parent, known)
				}
				if known == "" {
					children[from] = child
					names = append(names, child)
					keys[child] = newModelKey(req.Alg)
					keys[child].child = true
				}
				ops = append(ops, done{"derive", req, r.KID, 1})
			},
			"retry": func(*rapid.T) {
				if len(ops) == 0 {
					rt.Skip("nothing to retry")
				}
				op := rapid.SampledFrom(ops).Draw(rt, "op")
				var kid string
				var head uint32
				var replayed bool
				switch op.verb {
				case "create":
					r := Must[api.CreateResponse](tb, k, s, op.verb, op.req)
					kid, head, replayed = r.KID, r.Key.Head, r.Replayed
				case "rotate":
					r := Must[api.RotateResponse](tb, k, s, op.verb, op.req)
					kid, head, replayed = r.KID, r.Key.Head, r.Replayed
				case "destroy":
					r := Must[api.DestroyResponse](tb, k, s, op.verb, op.req)
					kid, head, replayed = r.KID, r.Key.Head, r.Replayed
				case "derive":
					r := Must[api.DeriveResponse](tb, k, s, op.verb, op.req)
					kid, head, replayed = r.KID, r.Key.Head, r.Replayed
				}
				if kid != op.kid || head != op.head || !replayed {
					rt.Fatalf("a repeated %s answers %s head %d (replayed %t), want %s head %d", op.verb, kid, head, replayed, op.kid, op.head)
				}
			},
			"reopen": func(*rapid.T) {
				if err := k.Close(); err != nil {
					rt.Fatal(err)
				}
				k = Open(tb, cfg, core.Options{})
				if r := k.Ready(); !r.Ready {
					rt.Fatalf("%+v", r)
				}
				s = Session(tb, k, "acme")
			},
			"": func(*rapid.T) { // after each
				list := Must[api.ListResponse](tb, k, s, "list", &api.ListRequest{Tenant: "acme"}).Keys
				if len(list) != len(names) {
					rt.Fatalf("%d keys, want %d", len(list), len(names))
				}
				for _, key := range list {
					name, _, _ := strings.Cut(key.KID, "#")
					m := keys[name]
					if len(key.Versions) != 1 || key.Versions[0].Version != key.Head {
						rt.Fatalf("%s is listed with %d versions", name, len(key.Versions))
					}
					var states []api.State
					for _, v := range Get(tb, k, s, name).Key.Versions {
						states = append(states, v.State)
					}
					if int(key.Head) != m.head() || !slices.Equal(states, m.states) || (key.State == api.StateDestroyed) != m.whole {
						rt.Fatalf("%s is %s head %d %v, want %+v", name, key.State, key.Head, states, m)
					}
					for v, sigs := range m.sigs {
						if !Verify(tb, k, s, Digest(0xaa), sigs).OK {
							rt.Fatalf("version %d does not verify any more", v)
						}
					}
					for _, e := range m.sealed {
						if _, err := Do[api.UnwrapResponse](k, s, "unwrap", &api.UnwrapRequest{KID: name, WrappedB64: e.envelope}); Code(err) != m.opens(e) {
							rt.Fatalf("an envelope of version %d: %v", e.version, err)
						}
					}
				}
			},
		})
	})
}

// rapidTB lets helpers fail the sequence under test, so that it is shrunk.
type rapidTB struct {
	testing.TB
	rt *rapid.T
}

func (t rapidTB) Helper()                   {}
func (t rapidTB) Fatal(args ...any)         { t.rt.Fatal(args...) }
func (t rapidTB) Fatalf(f string, a ...any) { t.rt.Fatalf(f, a...) }
func (t rapidTB) Cleanup(func())            {} // the sequence closes what it opens
