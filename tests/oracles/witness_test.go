package oracles

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/witness"
)

// A plainWitness is C2SP tlog-witness in few lines, written from the specification for one log. It keeps its state in
// memory, so it is one for tests only.
type plainWitness struct {
	signer note.Signer
	log    note.Verifier
	last   flog.Checkpoint
	v100   bool // another root at the size cosigned is 409, as in v1.0.0, and not 422
}

func (p *plainWitness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	front, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(front), "\n")
	var old uint64
	if n, _ := fmt.Sscanf(lines[0], "old %d", &old); err != nil || r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" ||
		!ok || n != 1 || lines[0] != fmt.Sprintf("old %d", old) || len(lines) > 64 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var hashes [][]byte
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(h) != 32 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		hashes = append(hashes, h)
	}
	c, _, n, err := flog.ParseCheckpoint(checkpoint, p.log.Name(), p.log)
	switch {
	case err != nil:
		w.WriteHeader(http.StatusForbidden)
		return
	case old > c.Size:
		w.WriteHeader(http.StatusBadRequest)
		return
	case old != p.last.Size:
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, "%d\n", p.last.Size)
		return
	case p.v100 && old == c.Size && old > 0 && !bytes.Equal(c.Hash, p.last.Hash):
		w.WriteHeader(http.StatusConflict)
		return
	case old == 0 && len(hashes) > 0 || old > 0 && proof.VerifyConsistency(rfc6962.DefaultHasher, old, c.Size, hashes, p.last.Hash, c.Hash) != nil:
		w.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	signed, err := note.Sign(&note.Note{Text: n.Text}, p.signer)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	p.last = *c
	w.Write(signed[len(n.Text)+1:])
}

// A plainLog is a log over the tree of the merkle library's own tests.
type plainLog struct {
	signer note.Signer
	vkey   string
	tree   *testonly.Tree
}

func newPlainLog(t *testing.T, origin string) *plainLog {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &plainLog{s, vkey, plainTree("record", 70)}
}

func plainTree(kind string, n int) *testonly.Tree {
	tree := testonly.New(rfc6962.DefaultHasher)
	for i := range n {
		tree.AppendData(fmt.Appendf(nil, "%s %d", kind, i))
	}
	return tree
}

func (l *plainLog) checkpoint(t *testing.T, size uint64) []byte {
	t.Helper()
	c := flog.Checkpoint{Origin: l.signer.Name(), Size: size, Hash: l.tree.HashAt(size)}
	b, err := note.Sign(&note.Note{Text: string(c.Marshal())}, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (l *plainLog) prove(size uint64) func(uint64) ([][32]byte, error) {
	return func(old uint64) (out [][32]byte, err error) {
		p, err := l.tree.ConsistencyProof(old, size)
		for _, h := range p {
			out = append(out, [32]byte(h))
		}
		return out, err
	}
}

// The product's client gets cosignatures from a witness that shares no code with the product, of either kind of key, and
// learns of a rollback and of a fork in either version of the protocol.
func TestClientOfPlainWitness(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"Ed25519", "ML-DSA-44"} {
		for _, v100 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v1.0.0=%v", algorithm, v100), func(t *testing.T) {
				t.Parallel()
				generate := fnote.GenerateMLDSAKey
				if algorithm == "Ed25519" {
					generate = func(name string) (string, string, error) {
						skey, vkey, err := note.GenerateKey(rand.Reader, name)
						if err == nil {
							vkey, err = fnote.VKeyToCosignatureV1(vkey)
						}
						return skey, vkey, err
					}
				}
				skey, vkey, err := generate("plain.example/w")
				if err != nil {
					t.Fatal(err)
				}
				signer, err := fnote.NewSignerForCosignatureV1(skey)
				if err != nil {
					t.Fatal(err)
				}
				l := newPlainLog(t, "log.example/a")
				v, err := note.NewVerifier(l.vkey)
				if err != nil {
					t.Fatal(err)
				}
				h := httptest.NewServer(&plainWitness{signer: signer, log: v, v100: v100})
				defer h.Close()
				c, err := witness.NewClient(vkey, h.URL, witness.ClientOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()

				old := uint64(0)
				for _, size := range []uint64{0, 1, 2, 7, 7, 64, 65} {
					lines, err := c.Add(t.Context(), old, l.prove(size), l.checkpoint(t, size))
					if err != nil {
						t.Fatalf("size %d: %v", size, err)
					}
					_, _, n, err := flog.ParseCheckpoint(append(l.checkpoint(t, size), lines...), "log.example/a", v, signer.Verifier())
					if err != nil || len(n.Sigs) != 2 {
						t.Errorf("size %d: %v", size, err)
					}
					old = size
				}
				if _, err := c.Add(t.Context(), 3, l.prove(66), l.checkpoint(t, 66)); err != nil {
					t.Errorf("asked from too early: %v", err)
				}
				var rollback *witness.RollbackError
				if _, err := c.Add(t.Context(), 0, l.prove(64), l.checkpoint(t, 64)); !errors.As(err, &rollback) || rollback.Seen != 66 {
					t.Errorf("rollback: %v", err)
				}
				l.tree = plainTree("other", 70)
				for _, size := range []uint64{66, 70} {
					for _, old := range []uint64{0, 66} {
						var fork *witness.ForkError
						if _, err := c.Add(t.Context(), old, l.prove(size), l.checkpoint(t, size)); !errors.As(err, &fork) || fork.Old != 66 {
							t.Errorf("fork from %d to %d: %v", old, size, err)
						}
					}
				}
			})
		}
	}
}

// The product's witness answers requests written by hand from the specification.
func TestWitnessByHand(t *testing.T) {
	t.Parallel()
	l := newPlainLog(t, "log.example/a")
	sofa := newPlainLog(t, "example.com/behind-the-sofa")
	dir := filepath.Join(t.TempDir(), "w")
	vkey, err := witness.Init(dir, "witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	for _, vkey := range []string{l.vkey, sofa.vkey} {
		if err := witness.AddLog(dir, "", []string{vkey}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := witness.Open(dir, witness.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := httptest.NewServer(s)
	defer h.Close()
	ask := func(body string) (int, string, string) {
		t.Helper()
		r, err := http.Post(h.URL+"/add-checkpoint", "", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, r.Header.Get("Content-Type"), string(b)
	}
	request := func(old, size uint64) string {
		body := fmt.Sprintf("old %d\n", old)
		if old > 0 {
			p, err := l.tree.ConsistencyProof(old, size)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range p {
				body += base64.StdEncoding.EncodeToString(h) + "\n"
			}
		}
		return body + "\n" + string(l.checkpoint(t, size))
	}
	v, err := fnote.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range [][2]uint64{{0, 0}, {0, 5}, {5, 5}, {5, 63}, {63, 64}, {64, 70}} {
		status, _, answer := ask(request(step[0], step[1]))
		_, _, n, err := flog.ParseCheckpoint(append(l.checkpoint(t, step[1]), answer...), l.signer.Name(), mustLogVerifier(t, l.vkey), v)
		if status != 200 || err != nil || len(n.Sigs) != 2 {
			t.Fatalf("%v: %d %q: %v", step, status, answer, err)
		}
	}
	if status, kind, answer := ask(request(5, 63)); status != 409 || kind != "text/x.tlog.size" || answer != "70\n" {
		t.Errorf("rollback: %d %q %q", status, kind, answer)
	}
	l.tree = plainTree("other", 71)
	for _, size := range []uint64{70, 71} {
		if status, _, answer := ask(request(70, size)); status != 422 {
			t.Errorf("fork to %d: %d %q", size, status, answer)
		}
	}
	// The example of tlog-witness. Its keys are not published, so what it shows is that the form is understood: an
	// unknown key (403), not a malformed request (400) nor an unknown log (404).
	if status, _, answer := ask(exampleRequest); status != 403 {
		t.Errorf("the example: %d %q", status, answer)
	}
	if status, _, _ := ask(strings.Replace(exampleRequest, "\n\nexample", "\nexample", 1)); status != 400 {
		t.Errorf("the example without its empty line: %d", status)
	}
}

func mustLogVerifier(t *testing.T, vkey string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const exampleRequest = `old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
`
