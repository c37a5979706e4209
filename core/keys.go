package core

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rustyonions/ron-kms/backends"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// A key is one state of a key, never changed once published: a rotation
// publishes another. What verify needs is all here, parsed once.
type key struct {
	kid      api.KID // without version
	alg      *alg.Alg
	scheme   alg.Scheme
	mode     alg.Mode // the key's own demand
	record   *keyRecord
	versions map[uint32]*version
	public   api.Key
	loadedAt time.Time
}

type version struct {
	state  api.State
	suite  *alg.Alg // all tracks together; bound into every preimage
	tracks []track
}

type track struct {
	*alg.Track
	ref    backends.Ref
	class  string
	public alg.Public
	sealed []byte
}

// newKey parses a record. Errors mean that the record does not make sense,
// which for an authentic record is a fault of ours or an older allow-list.
//
// What prev, an earlier state of the same key, has parsed is used again.
func newKey(kid api.KID, r *keyRecord, now time.Time, prev *key) (*key, error) {
	a, ok := alg.Lookup(kid.Alg)
	if !ok {
		return nil, api.NewError(api.ReasonUnsupported, "the key's algorithm is not on the allow-list")
	}
	mode, err := alg.ParseMode(r.Policy.VerifyMode)
	if err != nil {
		return nil, fmt.Errorf("key record: %w", err)
	}
	k := &key{kid: kid, alg: a, scheme: alg.Scheme(r.Scheme), mode: mode, record: r, versions: make(map[uint32]*version, len(r.Versions)), loadedAt: now}
	k.public = api.Key{
		KID: kid.At(r.Head).String(), Alg: a.Name(), Scheme: r.Scheme, State: r.State, Head: r.Head, Policy: r.Policy,
		Parent:   r.Parent,
		Versions: make([]api.KeyVersion, 0, len(r.Versions)),
	}
	for _, vr := range r.Versions {
		suite, err := suiteOf(a, vr.Tracks)
		if err != nil {
			return nil, err
		}
		v := &version{state: vr.State, suite: suite}
		pv := api.KeyVersion{KID: kid.At(vr.N).String(), Version: vr.N, State: vr.State, CreatedAt: vr.CreatedAt, Suite: suite.Name()}
		for _, tr := range vr.Tracks {
			row, _ := alg.LookupTrack(tr.Alg) // suiteOf has found it
			public, err := prev.parsed(vr.N, row, tr.Public)
			if err != nil {
				return nil, fmt.Errorf("key record: %w", err)
			}
			v.tracks = append(v.tracks, track{
				Track: row, ref: backends.Ref{KID: kid.At(vr.N), Track: tr.Alg},
				class: tr.Class, public: public, sealed: tr.Sealed,
			})
			if len(tr.Public) > 0 { // a secret key has no public part
				pv.Public = append(pv.Public, api.PublicKey{Alg: tr.Alg, PubkeyB64: api.FormatBase64(tr.Public)})
			}
			pv.AttestationClass = tr.Class
		}
		k.versions[vr.N] = v
		k.public.Versions = append(k.public.Versions, pv)
	}
	if k.versions[r.Head] == nil {
		return nil, fmt.Errorf("key record: head version is missing")
	}
	return k, nil
}

// signs reports whether the key can sign: its head may be destroyed alone.
func (k *key) signs() bool { return k.versions[k.record.Head].state == api.StateActive }

// parsed is the public key of one track, parsed now or by an earlier state c.
func (c *key) parsed(n uint32, row *alg.Track, public []byte) (alg.Public, error) {
	if c != nil && c.versions[n] != nil {
		if t := c.versions[n].track(row.Name()); t != nil && bytes.Equal(t.public.Bytes(), public) {
			return t.public, nil
		}
	}
	return row.ParsePublic(public)
}

// only gives the description of a key with one of its versions.
func only(k api.Key, n uint32) api.Key {
	for _, v := range k.Versions {
		if v.Version == n {
			k.Versions = []api.KeyVersion{v}
			return k
		}
	}
	k.Versions = nil
	return k
}

// suiteOf is the algorithm that a version's tracks make together: the key's
// own, or for a classical key with a companion track the hybrid of both.
func suiteOf(a *alg.Alg, tracks []trackRecord) (*alg.Alg, error) {
	names := make([]string, len(tracks))
	for i, t := range tracks {
		names[i] = t.Alg
	}
	own := a.Tracks()
	if len(names) >= len(own) {
		for i, t := range own {
			if names[i] != t.Name() {
				return nil, fmt.Errorf("key record: tracks are not of algorithm %s", a.Name())
			}
		}
		if len(names) == len(own) {
			return a, nil
		}
		if suite, ok := alg.Lookup(strings.Join(names, "+")); ok && len(suite.Tracks()) == len(names) {
			return suite, nil
		}
	}
	return nil, api.NewError(api.ReasonUnsupported, "the key's tracks are not on the allow-list")
}

// track finds a track of one version by name.
func (v *version) track(name string) *track {
	for i := range v.tracks {
		if v.tracks[i].Name() == name {
			return &v.tracks[i]
		}
	}
	return nil
}

// algNames are the names of all tracks of a version.
func (v *version) algNames() []string {
	names := make([]string, len(v.tracks))
	for i := range v.tracks {
		names[i] = v.tracks[i].Name()
	}
	return names
}

// A keyIndex finds keys by kid, and lists a tenant's keys in kid order.
type keyIndex struct {
	mu       sync.RWMutex // guards the fields below; held for look-ups only
	byKID    map[api.KID]*key
	byTenant map[string][]string // kids without version, sorted
}

func newKeyIndex() *keyIndex {
	return &keyIndex{byKID: make(map[api.KID]*key), byTenant: make(map[string][]string)}
}

// get returns the key that kid names, whatever version it has.
func (x *keyIndex) get(kid api.KID) *key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byKID[kid.Base()]
}

// put publishes a state of a key and returns the one it replaces.
func (x *keyIndex) put(k *key) (old *key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old = x.byKID[k.kid]
	x.byKID[k.kid] = k
	if old == nil {
		kids := x.byTenant[k.kid.Tenant]
		name := k.kid.String()
		at, _ := slices.BinarySearch(kids, name)
		x.byTenant[k.kid.Tenant] = slices.Insert(kids, at, name)
	}
	return old
}

// page returns up to limit keys of a tenant after a kid, and whether more
// follow.
func (x *keyIndex) page(tenant, purpose, after string, limit int) (keys []*key, more bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	kids := x.byTenant[tenant]
	at, found := slices.BinarySearch(kids, after)
	if found {
		at++
	}
	for _, name := range kids[at:] {
		if purpose != "" && !strings.HasPrefix(name, tenant+"/"+purpose+"/") {
			continue
		}
		if len(keys) == limit {
			return keys, true
		}
		kid, _ := api.ParseKID(name)
		keys = append(keys, x.byKID[kid])
	}
	return keys, false
}
