package core_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	. "github.com/rustyonions/ron-kms/core/coretest"
	"github.com/rustyonions/ron-kms/core/policy"
)

// inPhase is a store's configuration in a phase of the migration.
func inPhase(cfg *config.Config, phase int) *config.Config {
	c := *cfg
	c.PQVerifyMode = []string{"or", "or", "and", "pq_only"}[phase]
	c.PQProduceHybrid = phase > 0
	return &c
}

// migrant is a key on its way through the phases, as this test expects it.
type migrant struct {
	kid    string
	alg    string
	moving bool       // rotated in each phase
	tracks [][]string // of version i+1
}

func (m *migrant) head() []string { return m.tracks[len(m.tracks)-1] }

// own are the tracks that the key has in every phase.
func (m *migrant) own() []string { return strings.Split(m.alg, "+ml-dsa-65")[:1:1] }

// keyMode is the mode that the key demands by itself.
func (m *migrant) keyMode() string {
	if strings.Contains(m.alg, "+") {
		return "and"
	}
	return "or"
}

// versionTracks are the tracks of a version made in a phase.
func versionTracks(alg string, phase int) []string {
	if alg == "ed25519" && phase > 0 || strings.Contains(alg, "+") {
		return []string{"ed25519", "ml-dsa-65"}
	}
	return []string{alg}
}

// holds tells whether good signatures of these tracks satisfy a mode.
func holds(mode string, tracks []string) bool {
	state := map[bool]string{true: "ok", false: "absent"}
	return satisfied[mode][state[slices.Contains(tracks, "ed25519")]+" "+state[slices.Contains(tracks, "ml-dsa-65")]]
}

// One store goes through all phases and back. In each of them every signature
// ever made still holds exactly where the mode says so, companion tracks appear
// with new versions and only where they are produced, and a version that cannot
// satisfy the mode does not sign at all., D-17.
func TestMigration(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	var keys []*migrant
	type stored struct {
		by     *migrant
		tracks []string
		digest string
		sigs   []api.Signature
	}
	var all []stored
	for step, phase := range []int{0, 1, 2, 3, 2, 1, 0} {
		k := Open(t, inPhase(cfg, phase), core.Options{})
		s := Session(t, k, "acme")
		server := k.Config().PQVerifyMode
		where := fmt.Sprintf("step %d, phase %d", step, phase)
		refused := 0
		// New keys.
		for _, alg := range algorithms {
			for _, moving := range []bool{false, true} {
				c, err := Do[api.CreateResponse](k, s, "create", &api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "test", Alg: alg})
				m := &migrant{alg: alg, moving: moving, tracks: [][]string{versionTracks(alg, phase)}}
				if !holds(server, m.head()) {
					refused++
					if Code(err) != api.CodePqPolicy {
						t.Errorf("%s: create %s: %v, want PqPolicy", where, alg, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: create %s: %v", where, alg, err)
				}
				m.kid = Base(c.KID)
				keys = append(keys, m)
			}
		}
		// New versions, and new signatures by all.
		for _, m := range keys {
			if m.moving && step > 0 {
				next := versionTracks(m.alg, phase)
				_, err := Do[api.RotateResponse](k, s, "rotate", &api.RotateRequest{OpID: uuid.NewString(), KID: m.kid})
				switch {
				case holds(strictest(server, m.keyMode()), next):
					if err != nil {
						t.Fatalf("%s: rotate %s: %v", where, m.kid, err)
					}
					m.tracks = append(m.tracks, next)
				case Code(err) != api.CodePqPolicy: // nobody could use that version
					t.Errorf("%s: rotate %s: %v, want PqPolicy", where, m.kid, err)
				default:
					refused++
				}
			}
			mode := strictest(server, m.keyMode())
			signs := m.head()
			if m.alg == "ed25519" && phase == 0 {
				signs = m.own() // a companion is idle where nothing hybrid is produced
			}
			r, err := Do[api.SignResponse](k, s, "sign", &api.SignRequest{KID: m.kid, PayloadB3: Digest(byte(step))})
			if !holds(mode, signs) {
				refused++
				if Code(err) != api.CodePqPolicy || r != nil {
					t.Errorf("%s: %s with %v signs: %v, want PqPolicy", where, m.kid, signs, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: sign with %s of %v: %v", where, m.kid, m.head(), err)
			}
			var got []string
			for _, sig := range r.Sigs {
				got = append(got, sig.Alg)
			}
			if !slices.Equal(got, signs) {
				t.Errorf("%s: %s signed with %v, want %v", where, m.kid, got, signs)
			}
			all = append(all, stored{m, signs, Digest(byte(step)), r.Sigs})
		}
		for _, m := range keys {
			for i, v := range Get(t, k, s, m.kid).Key.Versions {
				var got []string
				for _, p := range v.Public {
					got = append(got, p.Alg)
				}
				if !slices.Equal(got, m.tracks[i]) || v.Suite != strings.Join(got, "+") {
					t.Errorf("%s: %s#v%d has the tracks %v and suite %s, want %v", where, m.kid, i+1, got, v.Suite, m.tracks[i])
				}
			}
		}
		// Everything that was ever signed, also of steps before.
		for _, x := range all {
			want := holds(strictest(server, x.by.keyMode()), x.tracks)
			r := Verify(t, k, s, x.digest, x.sigs)
			for _, c := range r.Details.Checked {
				if !c.OK {
					t.Fatalf("%s: a signature by %s is lost: %+v", where, c.KID, c)
				}
			}
			if r.OK != want {
				t.Errorf("%s: %v by %s: %+v, want %t", where, x.tracks, x.sigs[0].KID, r, want)
			}
		}
		if got := metric(t, k, "kms_reject_total", "reason=pq_policy"); got < float64(refused) || refused == 0 && phase > 1 {
			t.Errorf("%s: pq_policy counted %v times, refused %d times", where, got, refused)
		}
		k.Close()
	}
	if len(all) < 60 {
		t.Errorf("%d signatures only", len(all))
	}
}

// kms_reject_total{reason="pq_policy"} grows by one for each create, each sign
// and each verdict that policy refuses, and for nothing else. R-335.
func TestPqPolicyIsCounted(t *testing.T) {
	t.Parallel()
	cfg, _, k := store(t)
	s := Session(t, k, "acme")
	kid := Create(t, k, s, "ed25519").KID
	sigs := Sign(t, k, s, kid, Digest(1)).Sigs
	k.Close()
	c := *cfg
	c.PQVerifyMode = "and"
	k = Open(t, &c, core.Options{})
	s = Session(t, k, "acme")
	want := 0.0
	for what, f := range map[string]func() int{
		"create": func() int {
			_, err := Do[api.CreateResponse](k, s, "create", request("create", kid))
			return map[bool]int{true: 1}[err != nil]
		},
		"sign": func() int {
			_, err := Do[api.SignResponse](k, s, "sign", request("sign", kid))
			return map[bool]int{true: 1}[err != nil]
		},
		"sign_batch": func() int {
			n := 0
			for _, r := range Must[api.SignBatchResponse](t, k, s, "sign_batch", request("sign_batch", kid)).Results {
				if r.Error != nil && r.Error.Reason == api.ReasonPq && r.Sigs == nil {
					n++
				}
			}
			return n
		},
		"verify":       func() int { Verify(t, k, s, Digest(1), sigs); return 1 },
		"verify a bad": func() int { Verify(t, k, s, Digest(2), sigs); return 0 },
	} {
		n := f()
		if n == 0 && what != "verify a bad" || what == "sign_batch" && n != 2 {
			t.Errorf("%s: %d refusals", what, n)
		}
		want += float64(n)
		if got := metric(t, k, "kms_reject_total", "reason=pq_policy"); got != want {
			t.Errorf("after %s: %v, want %v", what, got, want)
		}
	}
}

// The grace period ends at its millisecond, for verifying alone: a version
// without a post-quantum track signs in no phase that demands one. A key's and
// a request's own demands know no grace. R-333, D-17.
func TestGraceEndsExactly(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	end := time.Date(2032, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := NewClock(end.Add(-30 * time.Minute))
	k := Open(t, cfg, core.Options{Clock: clock.Now})
	s := Session(t, k, "acme")
	old, hybrid := Create(t, k, s, "ed25519").KID, Create(t, k, s, "hybrid").KID
	legacy, both := Sign(t, k, s, old, Digest(1)).Sigs, Sign(t, k, s, hybrid, Digest(1)).Sigs
	k.Close()
	for _, phase := range []int{2, 3} {
		c := inPhase(cfg, phase)
		c.PQLegacyGraceUntil = config.Time{Time: end}
		k := Open(t, c, core.Options{Clock: clock.Now})
		s := Session(t, k, "acme")
		for _, at := range []struct {
			when time.Duration
			want bool
		}{{-time.Second, true}, {-time.Millisecond, true}, {0, false}, {time.Millisecond, false}, {-time.Millisecond, true}} {
			clock.Set(end.Add(at.when))
			r := Verify(t, k, s, Digest(1), legacy)
			if r.OK != at.want || r.Details.Grace != at.want || !at.want && r.Details.Reason != "pq_policy" {
				t.Errorf("phase %d, %v from the end: %+v, want %t", phase, at.when, r, at.want)
			}
			if r := Verify(t, k, s, Digest(1), both[:1]); r.OK || r.Details.Grace {
				t.Errorf("phase %d, %v from the end: half of a hybrid: %+v", phase, at.when, r)
			}
			if r := Verify(t, k, s, Digest(1), []api.Signature{spoil(legacy[0])}); r.OK {
				t.Errorf("phase %d, %v from the end: a bad signature: %+v", phase, at.when, r)
			}
			asked := &api.VerifyRequest{PayloadB3: Digest(1), Sigs: legacy, Policy: &api.VerifyPolicy{Mode: "pq_only"}}
			if r := Must[api.VerifyResponse](t, k, s, "verify", asked); r.OK {
				t.Errorf("phase %d, %v from the end: the request's demand was not heard: %+v", phase, at.when, r)
			}
			if _, err := Do[api.SignResponse](k, s, "sign", request("sign", old)); Code(err) != api.CodePqPolicy {
				t.Errorf("phase %d, %v from the end: sign without a companion: %v, want PqPolicy", phase, at.when, err)
			}
		}
		// Its next version has a companion, and is not of old.
		clock.Set(end.Add(-time.Second))
		if phase == 3 {
			next := Rotate(t, k, s, old)
			if half := Sign(t, k, s, Base(next.KID), Digest(1)).Sigs[:1]; Verify(t, k, s, Digest(1), half).OK {
				t.Error("half of a version with a companion verifies within the grace period")
			}
		}
		k.Close()
	}
}

// A tenant that the roll-out has not reached is in phase 0, for what is made and
// for what is demanded; the border is its bucket, and raising the percentage
// takes nobody out., D-17.
func TestRollout(t *testing.T) {
	t.Parallel()
	cfg := Config(t)
	Init(t, cfg)
	const inside, outside = "zebra", "acme"
	low, high := policy.Bucket(inside, "test"), policy.Bucket(outside, "test")
	if low >= high {
		t.Fatalf("buckets %d and %d: choose other tenants", low, high)
	}
	signed := make(map[string][]api.Signature)
	for _, c := range []struct {
		percent int
		reached []string
	}{
		{0, nil}, {low, nil}, {low + 1, []string{inside}}, {high, []string{inside}}, {high + 1, []string{inside, outside}}, {100, []string{inside, outside}},
	} {
		phase := inPhase(cfg, 2)
		phase.PQRolloutPercent = c.percent
		k := Open(t, phase, core.Options{})
		for _, tenant := range []string{inside, outside} {
			s := Session(t, k, tenant)
			reached := slices.Contains(c.reached, tenant)
			key := Create(t, k, s, "ed25519")
			sigs := Sign(t, k, s, key.KID, Digest(1)).Sigs
			want := 1
			if reached {
				want = 2
			}
			if len(sigs) != want || len(key.Key.Versions[0].Public) != want {
				t.Errorf("%d%%, %s: %d signatures, want %d", c.percent, tenant, len(sigs), want)
			}
			r := Verify(t, k, s, Digest(1), sigs[:1])
			if mode := map[bool]string{false: "or", true: "and"}[reached]; r.OK == reached || r.Details.Mode != mode {
				t.Errorf("%d%%, %s: half a bundle: %+v", c.percent, tenant, r)
			}
			if old, ok := signed[tenant]; ok && Verify(t, k, s, Digest(1), old).OK == (reached && len(old) == 1) {
				t.Errorf("%d%%, %s: a bundle of %d from before is judged wrongly", c.percent, tenant, len(old))
			}
			signed[tenant] = sigs
		}
		k.Close()
	}
}
