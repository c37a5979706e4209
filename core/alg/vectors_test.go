package alg_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
	"lukechampine.com/blake3"
)

var update = flag.String("update", "", "write anew the vectors of that name: preimage, derive or envelope")

const vectorFile = "../../docs/vectors/preimage.json"

type vectors struct {
	Comment string      `json:"comment"`
	Vectors []vector    `json:"vectors"`
	Raw     []rawVector `json:"raw"`
}

// rawVector is of the schemes without a preimage: the message is what is signed.
type rawVector struct {
	Name       string            `json:"name"`
	Scheme     string            `json:"scheme"`
	Message    string            `json:"message_hex"`
	Signatures []vectorSignature `json:"signatures"`
}

type vector struct {
	Name       string            `json:"name"`
	Payload    string            `json:"payload_hex"`
	Statement  vectorStatement   `json:"statement"`
	Preimage   string            `json:"preimage_hex"`
	Signatures []vectorSignature `json:"signatures"`
}

type vectorStatement struct {
	Suite     string `json:"suite"`
	KID       string `json:"kid"`
	Context   string `json:"context_hex"`
	NotBefore int64  `json:"not_before"`
	NotAfter  int64  `json:"not_after"`
	Digest    string `json:"digest_hex"`
}

type vectorSignature struct {
	Alg       string `json:"alg"`
	Seed      string `json:"seed_hex"`
	Public    string `json:"public_hex"`
	Signature string `json:"signature_hex"`
}

// makeVectors computes every vector from the fixed inputs below.
func makeVectors(t *testing.T) []byte {
	t.Helper()
	const uuid = "018f4c2e-7a3b-7c55-9d10-3f2b6a9e4d01"
	a := newArena(t)
	out := vectors{Comment: "Scheme ron-kms/v1, see docs/spec/preimage.md. The digest is BLAKE3 of the payload." +
		" ML-DSA signatures are the deterministic variant of FIPS 204 with context string ron-kms/v1, and none under raw;" +
		" those that ron-kms makes are hedged, and verify under the same keys. The seeds are public: never use these keys."}
	for _, in := range []struct {
		name, suite, label, payload, context string
		before, after                        int64
	}{
		{"ed25519, nothing optional", "ed25519", "ed25519", "hello", "", 0, 0},
		{"ed25519, empty payload, context", "ed25519", "ed25519", "", "ron:svc-registry:v1", 0, 0},
		{"ed25519, context and validity", "ed25519", "ed25519", "hello", "ron:svc-registry:v1", 1767225600000, 1767229200000},
		{"ml-dsa-65, nothing optional", "ml-dsa-65", "ml-dsa", "hello", "", 0, 0},
		{"ml-dsa-65, only a lower bound", "ml-dsa-65", "ml-dsa", "hello", "", 1767225600000, 0},
		{"hybrid, nothing optional", "ed25519+ml-dsa-65", "hybrid", "hello", "", 0, 0},
		{"ml-dsa-44, nothing optional", "ml-dsa-44", "ml-dsa-44", "hello", "", 0, 0},
		{"ml-dsa-87, nothing optional", "ml-dsa-87", "ml-dsa-87", "hello", "", 0, 0},
		{"hybrid with ml-dsa-44", "ed25519+ml-dsa-44", "ed25519+ml-dsa-44", "hello", "", 0, 0},
		{"hybrid with ml-dsa-87", "ed25519+ml-dsa-87", "ed25519+ml-dsa-87", "hello", "", 0, 0},
		{"hybrid, longest context, validity", "ed25519+ml-dsa-65", "hybrid", "hello", strings.Repeat("\xff", 255), 1, 1<<63 - 1},
	} {
		s := alg.Statement{
			Suite: in.suite, KID: "acme/release/" + in.label + "/" + uuid + "#v3", Context: []byte(in.context),
			NotBefore: in.before, NotAfter: in.after, Digest: blake3.Sum256([]byte(in.payload)),
		}
		msg, err := s.AppendPreimage(nil)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{
			Name: in.name, Payload: hex.EncodeToString([]byte(in.payload)), Preimage: hex.EncodeToString(msg),
			Statement: vectorStatement{s.Suite, s.KID, hex.EncodeToString(s.Context), s.NotBefore, s.NotAfter, hex.EncodeToString(s.Digest[:])},
		}
		suite, ok := alg.Lookup(in.suite)
		if !ok {
			t.Fatal(in.suite)
		}
		v.Signatures = signVectors(t, a, suite, alg.SchemeV1, msg)
		out.Vectors = append(out.Vectors, v)
	}
	digest := blake3.Sum256([]byte("hello"))
	for _, in := range []struct {
		name    string
		scheme  alg.Scheme
		suite   string
		message []byte
	}{
		{"raw-b3, hybrid", alg.SchemeRawB3, "ed25519+ml-dsa-65", digest[:]},
		{"raw, ed25519", alg.SchemeRaw, "ed25519", []byte("hello")},
		{"raw, ml-dsa-44, empty message", alg.SchemeRaw, "ml-dsa-44", nil},
	} {
		suite, ok := alg.Lookup(in.suite)
		if !ok {
			t.Fatal(in.suite)
		}
		out.Raw = append(out.Raw, rawVector{
			Name: in.name, Scheme: string(in.scheme), Message: hex.EncodeToString(in.message),
			Signatures: signVectors(t, a, suite, in.scheme, in.message),
		})
	}
	b, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// signVectors signs with every track of suite, without hedging, and has another
// library verify it.
func signVectors(t *testing.T, a *secret.Arena, suite *alg.Alg, scheme alg.Scheme, msg []byte) (sigs []vectorSignature) {
	t.Helper()
	ctx := []byte(nil)
	if scheme == alg.SchemeV1 {
		ctx = []byte("ron-kms/v1")
	}
	for i, tr := range suite.Tracks() {
		seed := bytes.Repeat([]byte{byte(0xa0 + i)}, tr.SeedSize())
		k := newPair(t, a, tr, fill(t, a, seed))
		sig, err := tr.SignDeterministic(k.expanded, scheme, msg)
		if err != nil || !k.public.VerifyScheme(scheme, msg, sig) || !foreign(t, tr.Name(), k.public.Bytes(), msg, ctx, sig) {
			t.Fatalf("%s as %s: %v", tr.Name(), scheme, err)
		}
		k.expanded.Destroy()
		sigs = append(sigs, vectorSignature{
			tr.Name(), hex.EncodeToString(seed), hex.EncodeToString(k.public.Bytes()), hex.EncodeToString(sig),
		})
	}
	return sigs
}

// D-1: the published vectors are what this code makes.
func TestPreimageVectors(t *testing.T) {
	want := makeVectors(t)
	if *update == "preimage" {
		if err := os.WriteFile(vectorFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/vectors/preimage.json is not what the code makes; a changed preimage breaks every signature made before")
	}
}

// verifyOffline runs the published script on a file of vectors.
func verifyOffline(t *testing.T, file string) (string, error) {
	t.Helper()
	for _, tool := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	out, err := exec.Command("python3", "-IS", "../../docs/vectors/verify_offline.py", file).CombinedOutput()
	return string(out), err
}

// D-1: the offline verifier, which shares no code with us, agrees with the
// vectors, and with nothing else.
func TestOfflineVerifier(t *testing.T) {
	t.Parallel()
	out, err := verifyOffline(t, vectorFile)
	if err != nil || strings.Count(out, "ed25519 ok") != 9 {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	const differs, bad = "preimage DIFFERS", "ed25519 BAD"
	for name, change := range map[string]func(*vector){
		differs:      func(v *vector) { v.Preimage = "00" },
		"kid":        func(v *vector) { v.Statement.KID = strings.Replace(v.Statement.KID, "#v3", "#v4", 1) },
		"suite":      func(v *vector) { v.Statement.Suite = "ml-dsa-65" },
		"not before": func(v *vector) { v.Statement.NotBefore++ },
		"digest":     func(v *vector) { v.Statement.Digest = strings.Repeat("00", 32) },
		"signature":  func(v *vector) { v.Signatures[0].Signature = strings.Repeat("01", 64) },
		"public key": func(v *vector) { v.Signatures[0].Public = strings.Repeat("02", 32) },
	} {
		var vs vectors
		if err := json.Unmarshal(raw, &vs); err != nil {
			t.Fatal(err)
		}
		v := vs.Vectors[0]
		v.Preimage = "" // else the verifier would stop at the comparison
		change(&v)
		vs.Vectors, vs.Raw = []vector{v}, nil
		b, err := json.Marshal(vs)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "v.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		want := bad
		if name == differs {
			want = differs
		}
		if out, err := verifyOffline(t, file); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s changed: %v\n%s", name, err, out)
		}
	}
}

// hexBlocks returns the bytes of the blocks marked hex in a Markdown file;
// "#" begins a comment.
func hexBlocks(t *testing.T, file string) (blocks [][]byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), "```hex\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		var digits strings.Builder
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, "#")
			digits.WriteString(strings.TrimSpace(line))
		}
		blocks = append(blocks, unhex(t, digits.String()))
	}
	return blocks
}

// D-1: the examples of the format descriptions are true.
func TestSpecExamples(t *testing.T) {
	t.Parallel()
	var vs vectors
	if err := json.Unmarshal(makeVectors(t), &vs); err != nil {
		t.Fatal(err)
	}
	v := vs.Vectors[0]
	sig := unhex(t, v.Signatures[0].Signature)
	blocks := hexBlocks(t, "../../docs/spec/preimage.md")
	if len(blocks) != 2 || !bytes.Equal(blocks[0], unhex(t, v.Preimage)) || !bytes.Equal(blocks[1], sig) {
		t.Error("docs/spec/preimage.md")
	}
	bundle, err := alg.AppendBundle(nil, []alg.Signature{{KID: v.Statement.KID, Alg: v.Signatures[0].Alg, Value: sig}})
	if err != nil {
		t.Fatal(err)
	}
	blocks = hexBlocks(t, "../../docs/spec/bundle.md")
	if len(blocks) != 1 || !bytes.Equal(blocks[0], bundle) {
		t.Error("docs/spec/bundle.md")
	}
	var es envelopeVectors
	readVectors(t, envelopeFile, &es)
	e := es.Vectors[slices.IndexFunc(es.Vectors, func(v envelopeVector) bool { return v.Name == "aes-256-gcm" })]
	blocks = hexBlocks(t, "../../docs/spec/envelope.md")
	if len(blocks) != 2 || !bytes.Equal(blocks[0], e.Envelope) || !bytes.Equal(blocks[1], e.AAD) {
		t.Error("docs/spec/envelope.md")
	}
	var ds deriveVectors
	readVectors(t, deriveFile, &ds)
	blocks = hexBlocks(t, "../../docs/spec/derive.md")
	if len(blocks) != 1 || !bytes.Equal(blocks[0], ds.Vectors[0].OKM) {
		t.Error("docs/spec/derive.md")
	}
}

// docs/spec/algorithms.md lists what the code has: every name, alias and
// family, and the sizes of every track.
func TestSpecAlgorithms(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/spec/algorithms.md")
	if err != nil {
		t.Fatal(err)
	}
	cells := map[string][][]string{} // the rows of all tables, by the name they begin with
	for line := range strings.Lines(string(text)) {
		row := strings.Split(strings.Trim(strings.ReplaceAll(line, "`", ""), "|\n "), "|")
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		cells[row[0]] = append(cells[row[0]], row)
	}
	orNone := func(n int) string {
		if n == 0 {
			return "none"
		}
		return strconv.Itoa(n)
	}
	for _, a := range alg.All() {
		var serves []string
		for _, op := range []alg.Op{alg.OpSign, alg.OpVerify, alg.OpWrap, alg.OpUnwrap, alg.OpDerive} {
			if a.Allows(op) {
				serves = append(serves, string(op))
			}
		}
		rows := cells[a.Name()]
		if len(rows) == 0 || rows[0][3] != a.Family() || rows[0][4] != strings.Join(serves, ", ") {
			t.Errorf("%s: %v", a.Name(), rows)
			continue
		}
		for alias := range strings.SplitSeq(rows[0][1], ", ") {
			if b, ok := alg.Lookup(alias); alias != "" && (!ok || a != b) {
				t.Errorf("%s: alias %s", a.Name(), alias)
			}
		}
	}
	for _, tr := range tracks() {
		rows := cells[tr.Name()]
		want := []string{tr.Class().String(), orNone(tr.PublicSize()), orNone(tr.SignatureSize() + tr.EncSize()), strconv.Itoa(tr.SeedSize())}
		if len(rows) != 2 || !slices.Equal(append([]string{rows[1][1]}, rows[1][3:6]...), want) {
			t.Errorf("%s: %v, want %v", tr.Name(), rows, want)
		}
	}
}
