package witness

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// A growing log is cosigned, again at the same size too, and both the formats library and the plain words of
// tlog-cosignature accept the cosignature. R-051
func TestCosigns(t *testing.T) {
	t.Parallel()
	for _, hybrid := range []bool{false, true} {
		l := newTestLog(t, "log.example/a", hybrid).grow(300, "a")
		dir, vkey := newDir(t, l)
		s := mustOpen(t, dir)
		c, _ := listen(t, s, vkey)
		v, err := fnote.NewVerifierForCosignatureV1(vkey)
		if err != nil {
			t.Fatal(err)
		}
		old := int64(0)
		for _, size := range []int64{0, 0, 1, 7, 7, 8, 256, 300} {
			lines := mustAdd(t, c, l, old, size)
			cp, _, n, err := flog.ParseCheckpoint(append(l.checkpoint(size), lines...), l.origin, mustVerifier(t, l.vkeys[0]), v)
			if err != nil || cp.Size != uint64(size) || len(n.Sigs) != 2 {
				t.Fatalf("size %d: %v", size, err)
			}
			checkByHand(t, vkey, l.text(size), string(lines))
			if got := stateSize(t, dir, l.origin); got != uint64(size) {
				t.Errorf("the state says %d, not %d", got, size)
			}
			old = size
		}
	}
}

// checkByHand verifies a cosignature line as C2SP tlog-cosignature words it, with nothing but Ed25519.
func checkByHand(t *testing.T, vkey, text, line string) {
	t.Helper()
	f := strings.SplitN(vkey, "+", 3)
	key, err := base64.StdEncoding.DecodeString(f[2])
	if err != nil || key[0] != 4 || len(key) != 33 {
		t.Fatalf("not a cosignature key: %q", vkey)
	}
	b64, ok := strings.CutPrefix(line, "— "+f[0]+" ")
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(b64, "\n"))
	if !ok || err != nil || len(sig) != 4+8+64 || !strings.HasSuffix(line, "\n") || fmt.Sprintf("%x", sig[:4]) != f[1] {
		t.Fatalf("not a cosignature line: %q", line)
	}
	msg := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(sig[4:]), text)
	if !ed25519.Verify(key[1:], []byte(msg), sig[12:]) {
		t.Error("the cosignature is not over the message of the specification")
	}
}

// Requests that are malformed, of strangers, or of another history get the status of tlog-witness, no cosignature, and
// leave the state as it was. R-407
func TestRefuses(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(20, "a")
	stranger := newTestLog(t, "log.example/a", false).grow(20, "a")
	unknown := newTestLog(t, "log.example/unknown", false).grow(20, "a")
	dir, vkey := newDir(t, l)
	s := mustOpen(t, dir)
	c, _ := listen(t, s, vkey)
	mustAdd(t, c, l, 0, 8)
	other := l.fork(4)
	good := l.body(8, 13)
	proofLine := strings.SplitAfter(good, "\n")[1]
	sub := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the request", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	wrongSig := l.body(8, 13)
	i := strings.LastIndex(wrongSig, "=")
	wrongSig = wrongSig[:i-8] + "AAAAAA" + wrongSig[i-2:]
	signed := func(text string) string { return "old 8\n\n" + string(signNote(text, l.signers...)) }
	ext := l.text(8) + "an extension\n"
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"empty":                           {"", 400},
		"no old line":                     {string(l.checkpoint(13)), 400},
		"no size":                         {sub("old 8", "old "), 400},
		"two spaces":                      {sub("old 8", "old  8"), 400},
		"capital":                         {sub("old 8", "Old 8"), 400},
		"leading zero":                    {sub("old 8", "old 08"), 400},
		"plus":                            {sub("old 8", "old +8"), 400},
		"negative":                        {sub("old 8", "old -8"), 400},
		"hexadecimal":                     {sub("old 8", "old 0x8"), 400},
		"size too large for the protocol": {sub("old 8", "old 9223372036854775808"), 400},
		"size too large for anything":     {sub("old 8", "old 99999999999999999999"), 400},
		"carriage return":                 {sub("old 8\n", "old 8\r\n"), 400},
		"carriage return in the proof":    {sub(proofLine, strings.TrimSuffix(proofLine, "\n")+"\r\n"), 400},
		"proof not base64":                {sub(proofLine, strings.Repeat("*", 44)+"\n"), 400},
		"proof without padding":           {sub(proofLine, strings.TrimSuffix(proofLine, "=\n")+"\n"), 400},
		"proof line too short":            {sub(proofLine, "AAAA\n"), 400},
		"proof line with loose bits":      {sub(proofLine, strings.Repeat("A", 42)+"B=\n"), 400},
		"proof too long":                  {sub(proofLine, strings.Repeat(proofLine, 64)), 400},
		"no empty line":                   {strings.Split(good, "\n\n")[0], 400},
		"no checkpoint":                   {"old 8\n\n", 400},
		"no signatures":                   {"old 8\n\n" + l.text(13), 400},
		"signature block without a line":  {"old 8\n\n" + l.text(13) + "\n", 400},
		"no final line feed":              {strings.TrimSuffix(good, "\n"), 400},
		"control character":               {sub("log.example/a\n", "log.example/a\x00\n"), 400},
		"not UTF-8":                       {sub("log.example/a\n", "log.example/a\xff\n"), 400},
		"size with leading zero":          {signed(strings.Replace(l.text(13), "\n13\n", "\n013\n", 1)), 400},
		"size not a number":               {signed(strings.Replace(l.text(13), "\n13\n", "\nmany\n", 1)), 400},
		"size of 2^63":                    {signed(strings.Replace(l.text(13), "\n13\n", "\n9223372036854775808\n", 1)), 400},
		"short root":                      {signed("log.example/a\n13\nAAAA\n"), 400},
		"no root":                         {signed("log.example/a\n13\n"), 400},
		"empty extension line":            {signed(l.text(13) + "\nmore\n"), 400},
		"old larger than the checkpoint":  {sub("old 8", "old 14"), 400},
		"too long":                        {good + strings.Repeat("x", maxBody), 413},
		"many signatures":                 {good + strings.Repeat("— x AAAAAAAA\n", 101), 400},

		"unknown log":                   {unknown.body(8, 13), 404},
		"origin with a space":           {sub("log.example/a\n", "log.example/a \n"), 404},
		"key of a stranger":             {stranger.body(8, 13), 403},
		"signature of another text":     {sub("\n13\n", "\n14\n"), 403},
		"signature changed":             {wrongSig, 403},
		"its own cosignature, no log's": {"old 8\n\n" + string(signNote(l.text(13), s.key.signer)), 403},
		"key of a stranger, rollback":   {stranger.body(0, 3), 403}, // who does not sign learns no size

		"from nothing":     {l.body(0, 13), 409},
		"from less":        {l.body(4, 13), 409},
		"from more":        {l.body(9, 13), 409},
		"rollback":         {l.body(0, 3), 409},
		"rollback to less": {l.body(7, 7), 409},
		"rollback to zero": {l.body(0, 0), 409},

		"no proof":                        {sub(proofLine, ""), 422},
		"hash of the proof changed":       {sub(proofLine, strings.Repeat("A", 43)+"=\n"), 422},
		"proof of another size":           {"old 8\n" + strings.Split(l.body(8, 14), "\n")[1] + "\n\n" + string(l.checkpoint(13)), 422},
		"hash too many":                   {sub(proofLine, proofLine+proofLine), 422},
		"proof at the same size":          {"old 8\n" + proofLine + "\n" + string(l.checkpoint(8)), 422},
		"fork at the same size":           {other.body(8, 8), 422},
		"fork that grows":                 {other.body(8, 13), 422},
		"fork at the same size, extended": {signed(strings.Replace(ext, l.text(8), other.text(8), 1)), 422},
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t, dir)
			w := post(s, tc.body)
			if w.Code != tc.status {
				t.Errorf("status %d (%q), not %d", w.Code, w.Body, tc.status)
			}
			if strings.Contains(w.Body.String(), "— ") {
				t.Errorf("signed: %q", w.Body)
			}
			if conflict := w.Code == 409; conflict != (w.Header().Get("Content-Type") == "text/x.tlog.size") || conflict && w.Body.String() != "8\n" {
				t.Errorf("%d with %q, %q", w.Code, w.Header().Get("Content-Type"), w.Body)
			}
			if !slices.Equal(before, snapshot(t, dir)) {
				t.Error("the state changed")
			}
		})
	}
	if w := post(s, signed(ext)); w.Code != 200 { // extension lines are the log's affair
		t.Errorf("extension line: %d %s", w.Code, w.Body)
	}
	if w := post(s, good+"— x AAAAAAAA\n"); w.Code != 200 { // signatures of strangers are ignored
		t.Errorf("a signature more: %d %s", w.Code, w.Body)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, s.logs[l.origin].state)); bytes.Contains(b, []byte("— x ")) {
		t.Error("the state has the signature of a stranger")
	}
}

// snapshot is the contents of the states in a directory; the evidence of forks is not one.
func snapshot(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, name := range list(t, dir) {
		if strings.HasSuffix(name, ".fork") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, name, string(b))
	}
	return all
}

// Only POST, only the one path.
func TestMethodsAndPaths(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(1, "a")
	dir, _ := newDir(t, l)
	s := mustOpen(t, dir)
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"GET", path, 405}, {"PUT", path, 405}, {"POST", "/", 404}, {"POST", path + "/", 404}, {"POST", "/x" + path, 404},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, strings.NewReader(l.body(0, 1))))
		if w.Code != tc.status || w.Code == 405 && w.Header().Get("Allow") != "POST" {
			t.Errorf("%s %s: %d", tc.method, tc.path, w.Code)
		}
	}
	w := httptest.NewRecorder()
	http.StripPrefix("/prefix", s).ServeHTTP(w, httptest.NewRequest("POST", "/prefix"+path, strings.NewReader(l.body(0, 1))))
	if w.Code != 200 {
		t.Errorf("below a prefix: %d", w.Code)
	}
}

// A checkpoint of no records has the root of the empty tree, and any tree continues it without a proof.
func TestSizeZero(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(3, "a")
	dir, _ := newDir(t, l)
	s := mustOpen(t, dir)
	zeros := "old 0\n\n" + string(signNote(head{origin: l.origin}.text(), l.signers...))
	if w := post(s, zeros); w.Code != 422 {
		t.Errorf("a root of zeros: %d", w.Code)
	}
	if w := post(s, l.body(0, 0)); w.Code != 200 {
		t.Errorf("the empty tree: %d", w.Code)
	}
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if w := post(s, "old 0\n"+hash+"\n\n"+string(l.checkpoint(3))); w.Code != 422 {
		t.Errorf("a proof from nothing: %d", w.Code)
	}
	if w := post(s, l.body(0, 3)); w.Code != 200 {
		t.Errorf("the first records: %d", w.Code)
	}
}

// A log with keys of both kinds needs a signature of each: a forger must break both.
func TestHybridLogNeedsBoth(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", true).grow(3, "a")
	dir, _ := newDir(t, l)
	s := mustOpen(t, dir)
	for i, signer := range l.signers {
		if w := post(s, "old 0\n\n"+string(signNote(l.text(3), signer))); w.Code != 403 {
			t.Errorf("signature %d alone: %d", i, w.Code)
		}
	}
	if w := post(s, l.body(0, 3)); w.Code != 200 {
		t.Errorf("both: %d %s", w.Code, w.Body)
	}
}

// What one log shows does not touch another, nor can one sign for another.
func TestTwoLogsDoNotMix(t *testing.T) {
	t.Parallel()
	a := newTestLog(t, "log.example/a", false).grow(9, "a")
	b := newTestLog(t, "log.example/b", false).grow(9, "b")
	dir, vkey := newDir(t, a, b)
	s := mustOpen(t, dir)
	c, _ := listen(t, s, vkey)
	mustAdd(t, c, a, 0, 9)
	mustAdd(t, c, b, 0, 2)
	mustAdd(t, c, b, 2, 5)
	if x, y := stateSize(t, dir, a.origin), stateSize(t, dir, b.origin); x != 9 || y != 5 {
		t.Errorf("sizes %d and %d", x, y)
	}
	if w := post(s, "old 9\n\n"+string(signNote(a.text(9), b.signers...))); w.Code != 403 {
		t.Errorf("b signs for a: %d", w.Code)
	}
	if w := post(s, "old 9\n\n"+string(signNote(strings.Replace(b.text(9), "/b", "/a", 1), a.signers...))); w.Code != 422 {
		t.Errorf("a shows the tree of b: %d", w.Code)
	}
}

// The proof of a fork is kept, once, and survives a restart; a wrong proof is none. R-407
func TestForkIsKept(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(9, "a")
	dir, _ := newDir(t, l)
	s := mustOpen(t, dir)
	forks := func() (n int) {
		for _, name := range list(t, dir) {
			if strings.HasSuffix(name, ".fork") {
				n++
			}
		}
		return n
	}
	post(s, l.body(0, 8))
	if post(s, "old 8\n\n"+string(l.checkpoint(9))); forks() != 0 {
		t.Error("a wrong proof was taken for a fork")
	}
	first, second := l.fork(2), l.fork(3)
	post(s, first.body(8, 8))
	post(s, second.body(8, 8))
	b, err := os.ReadFile(filepath.Join(dir, s.logs[l.origin].fork))
	if err != nil || string(b) != string(first.checkpoint(8)) {
		t.Errorf("kept %q, %v", b, err)
	}
	_, logs, err := Read(dir)
	if err != nil || !logs[0].Forked || logs[0].Size != 8 {
		t.Errorf("%+v, %v", logs, err)
	}
}

// Of trees that exclude each other one at most is ever cosigned, however requests race. R-407
func TestRace(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(6, "a")
	other := l.fork(0)
	dir, vkey := newDir(t, l)
	s := mustOpen(t, dir)
	var mu sync.Mutex
	roots := make(map[int64]map[*testLog]bool)
	var wg sync.WaitGroup
	for _, who := range []*testLog{l, other} {
		for old := int64(0); old <= 6; old++ {
			for size := max(old, 1); size <= 6; size++ {
				body := who.body(old, size)
				wg.Go(func() {
					for range 3 {
						w := post(s, body)
						if w.Code != 200 {
							continue
						}
						checkByHand(t, vkey, who.text(size), w.Body.String())
						mu.Lock()
						if roots[size] == nil {
							roots[size] = make(map[*testLog]bool)
						}
						roots[size][who] = true
						mu.Unlock()
					}
				})
			}
		}
	}
	wg.Wait()
	sides := make(map[*testLog]bool)
	for _, who := range roots {
		for w := range who {
			sides[w] = true
		}
	}
	if len(sides) != 1 {
		t.Errorf("%d histories were cosigned", len(sides))
	}
	if got := stateSize(t, dir, l.origin); roots[int64(got)] == nil {
		t.Errorf("the state is at %d, which was not released", got)
	}
}

// gate is a directory in which opening a file waits.
type gate struct {
	fsys.Dir
	entered, release chan struct{}
}

func (g gate) OpenFile(name string, flag int) (fsys.File, error) {
	g.entered <- struct{}{}
	<-g.release
	return g.Dir.OpenFile(name, flag)
}

// While one request is being made durable, no other passes the comparison with the state. R-407
func TestCompareAndReplaceIsOneStep(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(4, "a")
	other := l.fork(0)
	s := mustOpenSim(t, newSim(t, l))
	g := gate{s.dir, make(chan struct{}, 2), make(chan struct{})}
	s.dir = g
	var first, second *httptest.ResponseRecorder
	var wg sync.WaitGroup
	wg.Go(func() { first = post(s, l.body(0, 4)) })
	<-g.entered
	wg.Go(func() { second = post(s, other.body(0, 3)) })
	for range 10000 {
		runtime.Gosched() // long enough for the second to come as far as it can
	}
	close(g.release)
	wg.Wait()
	if first.Code != 200 || second.Code != 409 || second.Body.String() != "4\n" {
		t.Errorf("%d, then %d %q", first.Code, second.Code, second.Body)
	}
}

// What a request says is told, with the status that the client gets.
func TestReport(t *testing.T) {
	t.Parallel()
	l := newTestLog(t, "log.example/a", false).grow(3, "a")
	dir, _ := newDir(t, l)
	var got []Event
	s, err := Open(dir, Options{Report: func(e Event) { got = append(got, e) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	post(s, l.body(0, 3))
	post(s, l.body(0, 2))
	post(s, "nonsense")
	if len(got) != 3 || got[0] != (Event{l.origin, 3, 200, ""}) || got[1].Status != 409 || got[1].Size != 2 || got[2].Origin != "" || got[2].Status != 400 {
		t.Errorf("%+v", got)
	}
}

// A request reads the same after it is written again, and no two texts are one request.
func FuzzRequest(f *testing.F) {
	l := newTestLog(f, "log.example/a", false).grow(20, "a")
	f.Add([]byte(l.body(8, 13)))
	f.Add([]byte(l.body(0, 13)))
	f.Add([]byte("old 0\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.encode(), b) {
			t.Errorf("%q became %q", b, r.encode())
		}
	})
}
