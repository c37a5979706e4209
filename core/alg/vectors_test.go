package alg_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
	"lukechampine.com/blake3"
)

var update = flag.Bool("update", false, "write docs/vectors/preimage.json anew")

const vectorFile = "../../docs/vectors/preimage.json"

type vectors struct {
	Comment string   `json:"comment"`
	Vectors []vector `json:"vectors"`
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
		" ML-DSA signatures are the deterministic variant of FIPS 204 with context string ron-kms/v1;" +
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
		for i, tr := range suite.Tracks() {
			seed := bytes.Repeat([]byte{byte(0xa0 + i)}, tr.SeedSize())
			k := newPair(t, a, tr, fill(t, a, seed))
			sig, err := tr.SignDeterministic(k.expanded, msg)
			if err != nil || !k.public.Verify(msg, sig) {
				t.Fatalf("%s: %v", in.name, err)
			}
			k.expanded.Destroy()
			v.Signatures = append(v.Signatures, vectorSignature{
				tr.Name(), hex.EncodeToString(seed), hex.EncodeToString(k.public.Bytes()), hex.EncodeToString(sig),
			})
		}
		out.Vectors = append(out.Vectors, v)
	}
	b, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// D-1: the published vectors are what this code makes.
func TestPreimageVectors(t *testing.T) {
	want := makeVectors(t)
	if *update {
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

// D-1: the offline verifier, which shares no code with us, agrees with the
// vectors, and with nothing else.
func TestOfflineVerifier(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	run := func(file string) (string, error) {
		out, err := exec.Command("python3", "../../docs/vectors/verify_offline.py", file).CombinedOutput()
		return string(out), err
	}
	out, err := run(vectorFile)
	if err != nil || strings.Count(out, "ed25519 ok") != 5 {
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
		vs.Vectors = []vector{v}
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
		if out, err := run(file); err == nil || !strings.Contains(out, want) {
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

// D-1: the examples of the two format descriptions are true.
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
}
