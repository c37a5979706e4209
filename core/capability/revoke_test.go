package capability_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
)

const (
	revocationsHead = "ron-kms revocations 1\n"
	actorA          = "cap:9487be60e6c87a93"
)

// source is the text of a list of revocations, or what reading it gives
// instead.
type source struct {
	mu   sync.Mutex
	text string
	err  error
}

func (s *source) read() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []byte(s.text), s.err
}

func (s *source) set(text string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.err = text, err
}

// Each line ends what it names and nothing else, for tokens that come later
// and for grants that were given before.
func TestRevoked(t *testing.T) {
	t.Parallel()
	r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon}
	narrow := []string{tenantA, scopeA, expA, "scope=kms:sign", "nbf=1700000000"}
	for _, c := range []struct {
		lines   string
		revoked bool
	}{
		{"", false},
		{"root demo", true},
		{"root dem", false},
		{"root demo2", false},
		{"root ron-auth:demo", false},
		{"token " + actorA, true},
		{"token cap:9487be60e6c87a94", false},
		{"token ron:9487be60e6c87a93", false},
		{"tenant acme 1700000001", true}, // issued in the second before
		{"tenant acme 1700000000", false},
		{"tenant globex 253402300799", false},
		{"tenant Acme 253402300799", false},
		{"tenant acme 1700000001\ntenant acme 1", true}, // the latest counts, in any order
		{"tenant acme 1\ntenant acme 1700000001", true},
		{"# root demo", false},
		{"# why\nroot demo\n#", true},
	} {
		text := revocationsHead
		if c.lines != "" {
			text += c.lines + "\n"
		}
		var s source
		s.set("", fs.ErrNotExist)
		v, list := revocableVerifier(t, s.read)
		var grants []*capability.Grant
		for _, caveats := range [][]string{{tenantA, scopeA, expA}, narrow} {
			g, err := v.Verify(forge(caveats...))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.Clear(r); err != nil {
				t.Fatal(err)
			}
			grants = append(grants, g)
		}
		s.set(text, nil)
		if err := list.Reload(); err != nil {
			t.Fatalf("%q: %v", c.lines, err)
		}
		want := ""
		if c.revoked {
			want = "token-revoked"
		}
		for i, g := range grants {
			for range 2 {
				if p, err := g.Clear(r); reason(err) != want || p.Valid() == c.revoked {
					t.Errorf("%q: grant %d given before: %v, want %q", c.lines, i, err, want)
				}
			}
		}
		for _, caveats := range [][]string{{tenantA, scopeA, expA}, narrow} {
			g, err := v.Verify(forge(caveats...))
			if reason(err) != want || (g == nil) != c.revoked || c.revoked && !errors.Is(err, capability.ErrInvalid) {
				t.Errorf("%q: verify: %v, want %q", c.lines, err, want)
			}
		}
	}
}

// Whether a token is revoked is told only to who has it: a forged one gets the
// same answer as ever.
func TestRevocationIsNotAnOracle(t *testing.T) {
	t.Parallel()
	v, _ := revocableVerifier(t, func() ([]byte, error) { return []byte(revocationsHead + "root demo\n"), nil })
	tok, _ := chain(rootKey, capability.Location, ident, tenantA, scopeA, expA)
	tok.tag[0] ^= 1
	if _, err := v.Verify(tok.text()); reason(err) != "token-signature" {
		t.Errorf("forged: %v", err)
	}
	if _, err := v.Verify(forge(tenantA, scopeA, expA, "x=1")); reason(err) != "caveat-unknown" {
		t.Errorf("unknown caveat: %v", err)
	}
}

// A bound grant and the grant it was bound from end together.
func TestRevokedBoundGrant(t *testing.T) {
	t.Parallel()
	var s source
	s.set(revocationsHead, nil)
	v, list := revocableVerifier(t, s.read)
	g, err := v.Verify(forge(tenantA, scopeA, expA, "aud=x"))
	if err != nil {
		t.Fatal(err)
	}
	bound, err := g.Bind(capability.Presenter{Audience: "x"})
	if err != nil {
		t.Fatal(err)
	}
	s.set(revocationsHead+"token "+actorA+"\n", nil)
	if err := list.Reload(); err != nil {
		t.Fatal(err)
	}
	r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon}
	for _, g := range []*capability.Grant{g, bound} {
		if _, err := g.Clear(r); reason(err) != "token-revoked" {
			t.Errorf("%v", err)
		}
	}
}

// A list that is gone, unreadable, cut off or spoiled revokes what it revoked
// before, and says so; a list that can be read again counts. What is taken
// out of a good list counts again.
func TestRevocationsFailClosed(t *testing.T) {
	t.Parallel()
	good := revocationsHead + "root demo\n"
	for _, bad := range []struct {
		text string
		err  error
	}{
		{"", fs.ErrNotExist}, {"", errors.New("input/output error")}, {"", nil}, {good[:len(good)-1], nil}, {good + "root", nil}, {good + "x\n", nil},
		{"root demo\n", nil}, {strings.Replace(good, "1", "2", 1), nil}, {good + strings.Repeat("#\n", 1<<19), nil},
	} {
		var s source
		s.set(good, nil)
		v, list := revocableVerifier(t, s.read)
		s.set(bad.text, bad.err)
		generation := list.Generation()
		for range 2 {
			if err := list.Reload(); err == nil {
				t.Errorf("%.40q %v: not reported", bad.text, bad.err)
			}
		}
		if _, err := v.Verify(forge(tenantA, scopeA, expA)); reason(err) != "token-revoked" || list.Generation() != generation {
			t.Errorf("%.40q %v: %v", bad.text, bad.err, err)
		}
		s.set(revocationsHead, nil)
		if err := list.Reload(); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(forge(tenantA, scopeA, expA)); err != nil {
			t.Errorf("after a good list: %v", err)
		}
		// The first reading has nothing to fall back on.
		if !errors.Is(bad.err, fs.ErrNotExist) {
			s.set(bad.text, bad.err)
			if _, err := capability.NewRevocationList(s.read); err == nil {
				t.Errorf("%.40q %v: accepted at the start", bad.text, bad.err)
			}
		}
	}
}

// A change of the list counts within five seconds, in grants that are in use,
// without anybody's call; what goes wrong is reported once, and so is its end.
func TestWatchRevokesInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		s.set("", fs.ErrNotExist)
		v, list := revocableVerifier(t, s.read)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var reports []error
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			list.Watch(ctx, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, err)
			})
		}()
		g, err := v.Verify(forge(tenantA, scopeA, expA))
		if err != nil {
			t.Fatal(err)
		}
		r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon}
		s.set(revocationsHead+"token "+actorA+"\n", nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, err := g.Clear(r); reason(err) != "token-revoked" {
			t.Errorf("after two seconds: %v", err)
		}
		s.set("spoiled", nil)
		time.Sleep(5 * time.Second)
		s.set(revocationsHead, nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if _, err := g.Clear(r); err != nil {
			t.Errorf("after the list was emptied: %v", err)
		}
		mu.Lock()
		if len(reports) != 2 || reports[0] == nil || reports[1] != nil {
			t.Errorf("reports %v", reports)
		}
		mu.Unlock()
		cancel()
		<-ended
	})
}

// What is written is what is read, one text for each revocation.
func TestRevocationLines(t *testing.T) {
	t.Parallel()
	var text []byte
	all := []capability.Revocation{
		{Root: "demo"}, {Root: strings.Repeat("a", 32)}, {Root: "ron-auth:Key_1.a"}, {Token: actorA}, {Token: "ron:0123456789abcdef"},
		{Tenant: "acme:eu", Before: 1}, {Tenant: "acme", Before: 253402300799},
	}
	for _, r := range all {
		next, err := capability.AppendRevocation(text, r)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		text = next
	}
	if list, err := capability.ParseRevocations(text); err != nil || !slices.Equal(list, all) {
		t.Errorf("%v %v", list, err)
	}
	for _, r := range []capability.Revocation{
		{}, {Root: "Demo"}, {Root: "a b"}, {Root: "demo\nroot other"}, {Root: "demo", Token: actorA}, {Root: "demo", Before: 1}, {Token: "9487be60e6c87a93"},
		{Token: actorA[:19]}, {Token: strings.ToUpper(actorA)}, {Token: actorA + "\n"}, {Tenant: "acme"}, {Tenant: "acme", Before: -1},
		{Tenant: "acme", Before: 253402300800}, {Tenant: "a/b", Before: 1}, {Before: 1}, {Token: actorA, Tenant: "acme", Before: 1}, {Root: "ron-auth:"},
	} {
		if next, err := capability.AppendRevocation(text, r); err == nil {
			t.Errorf("%+v: accepted: %s", r, next[len(text):])
		}
	}
	if _, err := capability.AppendRevocation([]byte("spoiled"), all[0]); err == nil {
		t.Error("a spoiled list was added to")
	}
	for _, bad := range []string{
		"\n", "root\n", "root  demo\n", " root demo\n", "root demo \n", "root demo\r\n", "Root demo\n", "tenant acme\n", "tenant acme 01\n", "tenant acme 1 1\n",
		"tenant acme 0\n", "token cap:\n", "token *\n", "root *\n", "all\n", "root demo\n\nroot demo\n", "root demo", "#",
	} {
		if _, err := capability.ParseRevocations([]byte(revocationsHead + bad)); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	if _, err := capability.ParseRevocations(fmt.Appendf(nil, "\xef\xbb\xbf%s", revocationsHead)); err == nil {
		t.Error("a byte order mark was accepted")
	}
}

// Requests that run while lists change never see a revoked token as good once
// Reload has returned; meant for -race.
func TestRevokeWhileClearing(t *testing.T) {
	t.Parallel()
	var s source
	s.set(revocationsHead, nil)
	v, list := revocableVerifier(t, s.read)
	g, err := v.Verify(forge(tenantA, scopeA, expA))
	if err != nil {
		t.Fatal(err)
	}
	r := capability.Request{Scopes: []string{"kms:sign"}, Tenant: "acme", Now: noon}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = g.Clear(r)
				}
			}
		})
	}
	for i := range 200 {
		text, want := revocationsHead, ""
		if i%2 == 0 {
			text, want = text+"token "+actorA+"\n", "token-revoked"
		}
		s.set(text, nil)
		if err := list.Reload(); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Clear(r); reason(err) != want {
			t.Fatalf("round %d: %v, want %q", i, err, want)
		}
	}
	close(stop)
	wg.Wait()
}

// FuzzRevocations feeds any text: what is accepted is what its lines say.
func FuzzRevocations(f *testing.F) {
	f.Add([]byte(revocationsHead + "root demo\n# why\ntoken " + actorA + "\ntenant acme 1700000000\n"))
	f.Add([]byte(revocationsHead + "root demo"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := capability.ParseRevocations(text)
		if err != nil {
			return
		}
		lines := []string{"ron-kms revocations 1"}
		for _, r := range list {
			lines = append(lines, r.String())
		}
		var kept []string
		for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
			if !strings.HasPrefix(line, "#") {
				kept = append(kept, line)
			}
		}
		if !slices.Equal(lines, kept) {
			t.Fatalf("%q was read as %q", kept, lines)
		}
	})
}
