package witness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/fsys/fsystest"
)

func mustVerifier(tb testing.TB, vkey string) note.Verifier {
	tb.Helper()
	v, _, err := parseVerifier(vkey, typeEd25519, typeCosignature, typeMLDSA44)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// sizeOn is the size that a copy of the disk remembers.
func sizeOn(t *testing.T, d *fsystest.Disk, origin string) uint64 {
	t.Helper()
	return mustOpenSim(t, d).logs[origin].last.size
}

// A cosignature leaves only after its state would survive a power cut, and a state that cannot be kept lets none out,
// whichever step fails.
func TestDurableBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	other := l.fork(2)
	broken := errors.New("broken")
	for _, op := range []string{"", "open", "write", "sync", "rename", "syncdir"} {
		t.Run("fails at "+op, func(t *testing.T) {
			d := newSim(t, l)
			s := mustOpenSim(t, d)
			if w := post(s, l.body(0, 4)); w.Code != 200 {
				t.Fatal(w.Code)
			}
			var steps []string
			d.Fail = func(got, name string, n int) (int, error) {
				steps = append(steps, got)
				if got == op {
					return 0, broken
				}
				return n, nil
			}
			w := post(s, l.body(4, 9))
			d.Fail = nil
			if op == "" {
				if w.Code != 200 || strings.Join(steps, " ") != "open write sync rename syncdir" {
					t.Errorf("%d after %s", w.Code, steps)
				}
				rng := rand.New(rand.NewPCG(1, 2))
				for range 20 {
					if got := sizeOn(t, d.PowerCut(rng), l.origin); got != 9 {
						t.Fatalf("after a power cut it remembers %d of 9", got)
					}
				}
				return
			}
			if w.Code != 500 || strings.Contains(w.Body.String(), "— ") || strings.Contains(w.Body.String(), "broken") {
				t.Errorf("%d %q", w.Code, w.Body)
			}
			// Nothing larger than 4 was released. So either tree of 9 may come next, and then the other may not.
			if w := post(s, other.body(4, 9)); w.Code != 422 {
				t.Errorf("a fork before 4: %d", w.Code)
			}
			if got := sizeOn(t, d.Killed(), l.origin); got != 4 && got != 9 {
				t.Errorf("killed, it remembers %d", got)
			}
			if w := post(s, l.body(4, 7)); w.Code != 200 || sizeOn(t, d.Killed(), l.origin) != 7 {
				t.Errorf("after the disk is well again: %d", w.Code)
			}
		})
	}
}

// A restarted witness remembers. R-407
func TestRestart(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, vkey := newDir(t, l)
	s := mustOpen(t, dir)
	post(s, l.body(0, 8))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if w := post(s, l.body(8, 9)); w.Code != 500 {
		t.Errorf("a closed server answered %d", w.Code)
	}
	s = mustOpen(t, dir)
	if s.VerifierKey() != vkey {
		t.Error("another key")
	}
	other := l.fork(2)
	for body, status := range map[string]int{l.body(0, 3): 409, other.body(8, 8): 422, other.body(8, 9): 422} {
		if w := post(s, body); w.Code != status {
			t.Errorf("%d, not %d", w.Code, status)
		}
	}
	if w := post(s, l.body(8, 9)); w.Code != 200 {
		t.Errorf("growth: %d", w.Code)
	}
}

// A witness that lost something, or whose files are not its own, does not start.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	a := newTestLog(t, "log.example/a", false).grow(9, "a")
	b := newTestLog(t, "log.example/b", false).grow(9, "b")
	file := func(l *testLog) string {
		k, err := newLog(logConfig{Origin: l.origin, VKeys: l.vkeys})
		if err != nil {
			t.Fatal(err)
		}
		return k.state
	}
	edit := func(name, old, new string) func(string) error {
		return func(dir string) error {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !strings.Contains(string(text), old) {
				return fmt.Errorf("nothing to change: %v", err)
			}
			return os.WriteFile(filepath.Join(dir, name), []byte(strings.Replace(string(text), old, new, 1)), 0o600)
		}
	}
	copyFile := func(from, to string) error {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o600)
	}
	for name, damage := range map[string]func(dir string) error{
		"no state":             func(dir string) error { return os.Remove(filepath.Join(dir, file(a))) },
		"no key":               func(dir string) error { return os.Remove(filepath.Join(dir, keyFile)) },
		"no configuration":     func(dir string) error { return os.Remove(filepath.Join(dir, configFile)) },
		"empty state":          func(dir string) error { return os.WriteFile(filepath.Join(dir, file(a)), nil, 0o600) },
		"smaller state":        edit(file(a), "\n8\n", "\n7\n"),
		"state of another log": func(dir string) error { return copyFile(filepath.Join(dir, file(b)), filepath.Join(dir, file(a))) },
		"unsigned state":       func(dir string) error { return os.WriteFile(filepath.Join(dir, file(a)), a.checkpoint(8), 0o600) },
		"key that others read": func(dir string) error { return os.Chmod(filepath.Join(dir, keyFile), 0o640) },
		"another key": func(dir string) error {
			skey, _, err := generateKey("witness.example/w1")
			return errors.Join(err, os.WriteFile(filepath.Join(dir, keyFile), []byte(skey), 0o600))
		},
		"key not a key":       func(dir string) error { return os.WriteFile(filepath.Join(dir, keyFile), []byte("secret"), 0o600) },
		"unknown version":     edit(configFile, `"version": 1`, `"version": 2`),
		"unknown member":      edit(configFile, `"version": 1`, `"version": 1, "more": 1`),
		"log without keys":    edit(configFile, `"`+a.vkeys[0]+`"`, ""),
		"key with wrong hash": edit(configFile, a.vkeys[0], strings.Replace(a.vkeys[0], "+", "+0", 1)),
		"log twice":           edit(configFile, `"origin": "log.example/b"`, `"origin": "log.example/a"`),
		"log never added":     edit(configFile, `"origin": "log.example/b"`, `"origin": "log.example/c"`),
		"key of a wrong type": edit(configFile, `"vkey": "`, `"vkey": "`+a.vkeys[0]+`", "x": "`),
		"already open":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := newDir(t, a, b)
			s := mustOpen(t, dir)
			post(s, a.body(0, 8))
			if damage != nil {
				s.Close()
				if err := damage(dir); err != nil {
					t.Fatal(err)
				}
			}
			again, err := Open(dir, Options{})
			if err == nil {
				again.Close()
				t.Fatal("opened")
			}
			if busy := errors.Is(err, fsys.ErrBusy); busy != (damage == nil) {
				t.Errorf("busy %v: %v", busy, err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

// Adding a log again, or with a further key, forgets nothing; keys that cannot do are refused.
func TestAddLog(t *testing.T) {
	t.Parallel()
	a := newTestLog(t, "log.example/a", false).grow(9, "a")
	next := newTestLog(t, "log.example/a", true).grow(9, "a")
	dir, own := newDir(t, a)
	s := mustOpen(t, dir)
	post(s, a.body(0, 8))
	if err := AddLog(dir, "", next.vkeys[:1]); !errors.Is(err, fsys.ErrBusy) {
		t.Errorf("beside a server: %v", err)
	}
	s.Close()
	before := snapshot(t, dir)
	for name, vkeys := range map[string][]string{
		"none":            nil,
		"not a key":       {"log.example/c"},
		"only ML-DSA-44":  {strings.Replace(next.vkeys[1], "/a", "/c", 1)},
		"a cosignature's": {own},
		"wrong hash":      {strings.Replace(a.vkeys[0], "/a", "/c", 1)},
		"loose base64":    {a.vkeys[0] + "\n"},
	} {
		if err := AddLog(dir, "log.example/c", vkeys); err == nil {
			t.Errorf("%s: added", name)
		}
	}
	for _, origin := range []string{"two\nlines", strings.Repeat("x", 256), "\n"} {
		if err := AddLog(dir, origin, a.vkeys); err == nil {
			t.Errorf("origin %q: added", origin)
		}
	}
	if after := snapshot(t, dir); strings.Join(after, "") != strings.Join(before, "") {
		t.Error("a refused log changed something")
	}
	for range 2 {
		if err := AddLog(dir, "", next.vkeys[:1]); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, dir)
	if w := post(s, a.body(0, 3)); w.Code != 409 {
		t.Errorf("it forgot: %d", w.Code)
	}
	if w := post(s, next.body(8, 9)); w.Code != 200 {
		t.Errorf("the new key: %d %s", w.Code, w.Body)
	}
}

// Making a witness is explicit and never replaces anything; its files are for the owner alone.
func TestInit(t *testing.T) {
	t.Parallel()
	dir, _ := newDir(t, newTestLog(t, "log.example/a", false))
	if _, err := Init(dir, "witness.example"); err == nil {
		t.Error("made a witness over another")
	}
	for _, name := range []string{"", "a b", "a+b", strings.Repeat("x", 256)} {
		if _, err := Init(t.TempDir(), name); err == nil {
			t.Errorf("name %q", name)
		}
	}
	// Base64 may have a + in it, which also separates the fields: so try some.
	for range 50 {
		skey, vkey, err := generateKey("witness.example/w1")
		if err != nil {
			t.Fatal(err)
		}
		hash := strings.Split(vkey, "+")[1]
		if !strings.HasPrefix(skey, "PRIVATE+KEY+witness.example/w1+"+hash+"+B") { // B: type 4
			t.Error("the private key is not one for cosignatures") // and is not printed
		}
	}
	for _, name := range list(t, dir) {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Error("others may look into the directory")
	}
}

const servedDir = "RONKMS_TEST_WITNESS"

// TestMain also is the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(servedDir); dir != "" {
		s, err := Open(dir, Options{})
		if err == nil {
			var l net.Listener
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
				fmt.Println("http://" + l.Addr().String())
				err = http.Serve(l, s)
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A killed witness remembers everything that it let out. R-201
func TestKill(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(5000, "a")
	dir, vkey := newDir(t, l)
	released := int64(0)
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), servedDir+"="+dir, "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		url, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewClient(vkey, strings.TrimSpace(url), ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// The kill comes from beside, so that it falls anywhere in an exchange.
		reached := make(chan struct{})
		go func() {
			<-reached
			cmd.Process.Kill()
		}()
		for n := 0; ; n++ {
			if n == 10+7*round {
				close(reached)
			}
			if _, err := c.Add(context.Background(), uint64(released), l.prove(released+1), l.checkpoint(released+1)); err != nil {
				var rb *RollbackError
				if n < 10+7*round || errors.As(err, &rb) {
					t.Errorf("exchange %d: %v", n, err)
				}
				break
			}
			released++
		}
		cmd.Wait()
		c.Close()
		got := int64(stateSize(t, dir, l.origin))
		if got != released && got != released+1 { // the last may be kept without having been let out
			t.Fatalf("let out %d, remembers %d", released, got)
		}
		released = got
	}
}
