package witness

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A log that was put back learns it from the witness.
func TestRollbackError(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, vkey := newDir(t, l)
	c, _ := listen(t, mustOpen(t, dir), vkey)
	mustAdd(t, c, l, 0, 8)
	for _, tc := range []struct{ old, size int64 }{{0, 5}, {5, 5}, {3, 5}, {0, 0}} {
		_, err := c.Add(t.Context(), uint64(tc.old), l.prove(tc.size), l.checkpoint(tc.size))
		var rb *RollbackError
		if !errors.As(err, &rb) || *rb != (RollbackError{"witness.example/w1", 8, uint64(tc.size)}) {
			t.Errorf("from %d to %d: %v", tc.old, tc.size, err)
		}
	}
	// The caller's own memory is enough, without asking.
	var rb *RollbackError
	if _, err := c.Add(t.Context(), 9, l.prove(8), l.checkpoint(8)); !errors.As(err, &rb) || rb.Seen != 9 {
		t.Errorf("from 9 to 8: %v", err)
	}
}

// A log that went another way learns it from the witness, whatever it believes the witness has. R-407
func TestForkError(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	other := l.fork(4)
	dir, vkey := newDir(t, l)
	c, _ := listen(t, mustOpen(t, dir), vkey)
	mustAdd(t, c, l, 0, 8)
	for _, tc := range []struct{ old, size int64 }{{8, 8}, {8, 9}, {0, 8}, {0, 9}, {4, 9}} {
		_, err := c.Add(t.Context(), uint64(tc.old), other.prove(tc.size), other.checkpoint(tc.size))
		var fe *ForkError
		if !errors.As(err, &fe) || *fe != (ForkError{"witness.example/w1", 8, uint64(tc.size)}) {
			t.Errorf("from %d to %d: %v", tc.old, tc.size, err)
		}
	}
}

// A client that does not know where the witness is asks once more from there.
func TestAsksAgain(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, vkey := newDir(t, l)
	s := mustOpen(t, dir)
	var asked atomic.Int32
	c, _ := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		s.ServeHTTP(w, r)
	}), vkey)
	for i, tc := range []struct {
		old, size int64
		asked     int32
	}{{0, 5, 1}, {0, 7, 2}, {3, 8, 2}, {0, 8, 2}, {8, 9, 1}, {9, 9, 1}} {
		asked.Store(0)
		mustAdd(t, c, l, tc.old, tc.size)
		if got := asked.Load(); got != tc.asked {
			t.Errorf("%d: asked %d times", i, got)
		}
	}
}

// Answers that are not a cosignature by the configured key are not believed, and none but 409 and 422 accuses the log.
func TestAnswers(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	newKey := func() (*cosigner, string) {
		dir, vkey := newDir(t)
		s := mustOpen(t, dir)
		return s.key, vkey
	}
	key, vkey := newKey()
	stranger, _ := newKey()
	line := func(k *cosigner, text string) string {
		b := string(signNote(text, k.signer))
		return b[strings.LastIndex(b, "\n\n")+2:]
	}
	good := line(key, l.text(5))
	// A line that ends where the client stops reading, so that only the limit can refuse what follows.
	room := maxAnswer + 1 - len(good) - len("— x \n")
	full := good + "— x" + strings.Repeat("x", room%4) + " " + strings.Repeat("A", room/4*4) + "\n"
	const lineKind, sizeKind = "text/plain", "text/x.tlog.size"
	for name, tc := range map[string]struct {
		old    int64
		status int
		kind   string
		body   string
		want   string // "ok", "fork", "rollback" or "plain"
	}{
		"cosignature":                       {4, 200, lineKind, good, "ok"},
		"of any type":                       {4, 200, "", good, "ok"},
		"and another's":                     {4, 200, lineKind, line(stranger, l.text(5)) + good + line(stranger, l.text(4)), "ok"},
		"only another's":                    {4, 200, lineKind, line(stranger, l.text(5)), "plain"},
		"of another checkpoint":             {4, 200, lineKind, line(key, l.text(4)), "plain"},
		"with another time":                 {4, 200, lineKind, retime(good), "plain"},
		"the log's own signature":           {4, 200, lineKind, line(&cosigner{signer: l.signers[0]}, l.text(5)), "plain"},
		"empty":                             {4, 200, lineKind, "", "plain"},
		"not lines":                         {4, 200, lineKind, "cosigned!\n", "plain"},
		"another note":                      {4, 200, lineKind, string(signNote(l.text(4), key.signer)), "plain"},
		"too long":                          {4, 200, lineKind, full + "more\n", "plain"},
		"no content":                        {4, 204, "", "", "plain"},
		"cosignature with another status":   {4, 202, lineKind, good, "plain"},
		"redirect":                          {4, 307, "", "", "plain"},
		"malformed":                         {4, 400, "", "", "plain"},
		"unknown key":                       {4, 403, "", "", "plain"},
		"unknown log":                       {4, 404, "", "", "plain"},
		"too many":                          {4, 429, "", "", "plain"},
		"broken":                            {4, 500, "", "", "plain"},
		"unavailable":                       {4, 503, "", "", "plain"},
		"larger":                            {4, 409, sizeKind, "6\n", "rollback"},
		"much larger":                       {4, 409, sizeKind, "9223372036854775807\n", "rollback"},
		"wrong proof":                       {4, 422, "", "", "fork"},
		"wrong proof, with a cosignature":   {4, 422, lineKind, good, "fork"},
		"other root at the size, v1.0.0":    {5, 409, "", "other root\n", "fork"},
		"other root at the size, with size": {5, 409, sizeKind, "5\n", "fork"},
		"always smaller":                    {4, 409, sizeKind, "3\n", "plain"},
		"the one given":                     {4, 409, sizeKind, "4\n", "plain"},
		"no size":                           {4, 409, sizeKind, "", "plain"},
		"size without a line feed":          {4, 409, sizeKind, "6", "plain"},
		"size with a leading zero":          {4, 409, sizeKind, "06\n", "plain"},
		"negative size":                     {4, 409, sizeKind, "-6\n", "plain"},
		"size of 2^63":                      {4, 409, sizeKind, "9223372036854775808\n", "plain"},
		"size of another type":              {4, 409, "text/plain", "6\n", "plain"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			c, _ := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) > 2 || r.URL.Path != path {
					t.Errorf("request %d for %s", asked.Load(), r.URL.Path)
				}
				w.Header().Set("Content-Type", tc.kind)
				if tc.status == 307 {
					w.Header().Set("Location", "/elsewhere")
				}
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.body)
			}), vkey)
			lines, err := c.Add(t.Context(), uint64(tc.old), l.prove(5), l.checkpoint(5))
			var rb *RollbackError
			var fe *ForkError
			got := "plain"
			switch {
			case err == nil:
				got = "ok"
			case errors.As(err, &rb):
				got = "rollback"
			case errors.As(err, &fe):
				got = "fork"
			}
			if got != tc.want {
				t.Errorf("%s, not %s: %v", got, tc.want, err)
			}
			if (err == nil) != (string(lines) == good) {
				t.Errorf("returned %q", lines)
			}
		})
	}
}

// A witness that keeps changing its mind is asked twice.
func TestAsksOnlyAgain(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	_, vkey := newDir(t)
	var asked atomic.Int32
	c, _ := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", sizeType)
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, "%d\n", 7-asked.Add(1))
	}), vkey)
	var rb *RollbackError
	if _, err := c.Add(t.Context(), 0, l.prove(9), l.checkpoint(9)); err == nil || errors.As(err, &rb) || asked.Load() != 2 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
}

// retime changes the time in a cosignature and nothing else.
func retime(line string) string {
	i := strings.LastIndexByte(line, ' ') + 1 + 12 // characters 0 to 5 are the key's hash, 5 to 16 the time
	other := "A"
	if line[i] == 'A' {
		other = "B"
	}
	return line[:i] + other + line[i+1:]
}

// No proof, no answer, no time: plain errors that say nothing about the log.
func TestNothingLearnt(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, vkey := newDir(t, l)
	c, url := listen(t, mustOpen(t, dir), vkey)
	mustAdd(t, c, l, 0, 4)
	noProof := errors.New("no proof")
	_, err := c.Add(t.Context(), 4, func(uint64) ([][32]byte, error) { return nil, noProof }, l.checkpoint(8))
	if !errors.Is(err, noProof) {
		t.Error(err)
	}
	for _, text := range []string{"", "not a note", l.text(8), string(signNote("a\nb\nc\n", l.signers...))} {
		if _, err := c.Add(t.Context(), 4, l.prove(8), []byte(text)); err == nil {
			t.Errorf("%q was sent", text)
		}
	}
	plain := func(name string, err error) {
		t.Helper()
		var rb *RollbackError
		var fe *ForkError
		if err == nil || errors.As(err, &rb) || errors.As(err, &fe) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Add(ctx, 4, l.prove(8), l.checkpoint(8))
	plain("cancelled", err)

	hold := make(chan struct{})
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-hold }))
	defer h.Close()
	defer close(hold)
	slow, err := NewClient(vkey, h.URL, ClientOptions{Timeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = slow.Add(t.Context(), 4, l.prove(8), l.checkpoint(8))
	plain("no answer", err)

	gone, err := NewClient(vkey, strings.Replace(url, "127.0.0.1", "[::1]", 1), ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = gone.Add(t.Context(), 4, l.prove(8), l.checkpoint(8))
	plain("nobody there", err)
}

// A client speaks TLS, or stays on this machine.
func TestAddresses(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false)
	_, vkey := newDir(t, l)
	for address, ok := range map[string]bool{
		"https://witness.example":        true,
		"https://witness.example/prefix": true,
		"http://127.0.0.1:80":            true,
		"http://[::1]:80/prefix/":        true,
		"http://localhost":               true,
		"unix:///run/witness.sock":       true,

		"http://witness.example":          false,
		"http://192.0.2.1":                false,
		"http://localhost.example":        false,
		"http://127.0.0.1.example":        false,
		"http://127.0.0.1@witness.exampl": false,
		"https://":                        false,
		"https:///path":                   false,
		"https://a:b@witness.example":     false,
		"https://witness.example?a=b":     false,
		"https://witness.example/#a":      false,
		"unix://run/witness.sock":         false,
		"unix:witness.sock":               false,
		"ftp://witness.example":           false,
		"witness.example":                 false,
		"":                                false,
		"http://%zz":                      false,
	} {
		c, err := NewClient(vkey, address, ClientOptions{})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err == nil && (strings.HasSuffix(c.url, "/"+path) || !strings.HasSuffix(c.url, path)) {
			t.Errorf("%q asks at %s", address, c.url)
		}
	}
	if _, err := NewClient(vkey, "http://witness.example", ClientOptions{AllowPlainHTTP: true}); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"", "a+b", l.vkeys[0], strings.Replace(vkey, "w1", "w2", 1), vkey + "="} {
		if _, err := NewClient(key, "https://witness.example", ClientOptions{}); err == nil {
			t.Errorf("key %q", key)
		}
	}
	// A name that means this machine must also lead to it.
	if onlyLoopback("tcp", "192.0.2.1:80", nil) == nil || onlyLoopback("tcp", "[::1]:80", nil) != nil {
		t.Error("loopback is not checked when connecting")
	}
	c, err := NewClient(vkey, "http://localhost", ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.http.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "192.0.2.1:80")
	if err == nil {
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "is not loopback") {
		t.Errorf("connecting elsewhere: %v", err)
	}
}

func TestTransports(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, vkey := newDir(t, l)
	s := mustOpen(t, dir)

	h := httptest.NewTLSServer(http.StripPrefix("/prefix", s))
	t.Cleanup(h.Close)
	roots := h.Client().Transport.(*http.Transport).TLSClientConfig
	c, err := NewClient(vkey, h.URL+"/prefix/", ClientOptions{TLS: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	mustAdd(t, c, l, 0, 3)
	if roots.MinVersion == tls.VersionTLS13 {
		t.Error("the caller's configuration was changed")
	}
	c, err = NewClient(vkey, h.URL+"/prefix", ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Add(t.Context(), 3, l.prove(4), l.checkpoint(4)); err == nil {
		t.Error("an unknown authority was believed")
	}

	old := httptest.NewUnstartedServer(s)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.StartTLS()
	t.Cleanup(old.Close)
	c, err = NewClient(vkey, old.URL, ClientOptions{TLS: old.Client().Transport.(*http.Transport).TLSClientConfig})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Add(t.Context(), 3, l.prove(4), l.checkpoint(4)); err == nil {
		t.Error("TLS 1.2 was spoken")
	}

	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: s}
	go hs.Serve(ln)
	t.Cleanup(func() { hs.Close() })
	c, err = NewClient(vkey, "unix://"+socket, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	mustAdd(t, c, l, 3, 9)
}
