package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"pgregory.net/rapid"
)

// vectorRecord is the worked example of docs/spec/audit-record.md.
func vectorRecord() *Record {
	r := &Record{
		Kind: KindOperation, Time: time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC), Op: "sign", Tenant: "acme",
		Key: "acme/signing/ed25519/0192d3a8-7c1e-7000-8000-000000000001", KeyVersion: 2, Alg: "ed25519", Purpose: "signing",
		Result: "ok", Actor: "cap:7f3a9c", KeySeq: 3, KeyPrev: 41, Ref: 42,
	}
	for i := range 32 {
		r.InputHash[i] = byte(i)
		r.Boot[i/2], r.OpID[i/2] = 0xb0|byte(i/4), 0x50|byte(i/4)
	}
	return r
}

// recordVectors is docs/vectors/audit-record.json.
type recordVectors struct {
	Records []struct {
		Name     string          `json:"name"`
		Hex      string          `json:"hex"`
		LeafHash string          `json:"leaf_hash"`
		Record   json.RawMessage `json:"record"`
	} `json:"records"`
	Refused []struct {
		Name string `json:"name"`
		Hex  string `json:"hex"`
		Why  string `json:"why"` // a part of the error
	} `json:"refused"`
}

func loadJSON(tb testing.TB, name string, v any) {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", "vectors", name))
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		tb.Fatal(err)
	}
}

// The published vectors hold, and the document shows the first of them. R-013.
func TestRecordVectors(t *testing.T) {
	t.Parallel()
	var vs recordVectors
	loadJSON(t, "audit-record.json", &vs)
	if len(vs.Records) < 3 || len(vs.Refused) < 10 {
		t.Fatal("vectors are missing")
	}
	for _, v := range vs.Records {
		b, err := hex.DecodeString(v.Hex)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRecord(b)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		again, err := r.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: encoded again as %x (%v)", v.Name, again, err)
		}
		if got := hex.EncodeToString(rfc6962.DefaultHasher.HashLeaf(b)); got != v.LeafHash {
			t.Errorf("%s: leaf hash %s", v.Name, got)
		}
		var want bytes.Buffer
		if err := json.Compact(&want, v.Record); err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(r); string(got) != want.String() {
			t.Errorf("%s: JSON %s", v.Name, got)
		}
	}
	b, err := vectorRecord().AppendBinary(nil)
	if err != nil || hex.EncodeToString(b) != vs.Records[0].Hex {
		t.Errorf("the example encodes as %x (%v)", b, err)
	}
	doc, err := os.ReadFile(filepath.Join("..", "docs", "spec", "audit-record.md"))
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	in := false
	for line := range strings.Lines(string(doc)) {
		if strings.HasPrefix(line, "```") {
			in = line == "```hex\n"
			continue
		}
		if in {
			line, _, _ = strings.Cut(line, "#")
			shown.WriteString(strings.Join(strings.Fields(line), ""))
		}
	}
	if shown.String() != vs.Records[0].Hex {
		t.Errorf("the document shows %s", shown.String())
	}
	for _, v := range vs.Refused {
		b, err := hex.DecodeString(v.Hex)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecord(b); err == nil || !strings.Contains(err.Error(), v.Why) {
			t.Errorf("%s: got %v, want %q", v.Name, err, v.Why)
		}
	}
}

// Every field survives encoding, and a typical signature takes about 300 bytes. R-013.
func TestRecordIdentity(t *testing.T) {
	t.Parallel()
	text := func(max int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			return strings.ToValidUTF8(rapid.StringOfN(rapid.RuneFrom([]rune("aé漢🔑/:+ ~-_\u2028")), 0, 40, max).Draw(t, "text"), "")
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		arr := func(n int) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "bytes") }
		u64 := func() uint64 { return rapid.Uint64().Draw(t, "n") }
		r := &Record{
			Kind: Kind(rapid.IntRange(1, int(KindKeys)).Draw(t, "kind")), Time: time.UnixMicro(rapid.Int64Range(1, maxTime-1).Draw(t, "time")).UTC(),
			Boot: [16]byte(arr(16)), Op: text(255).Draw(t, "op"), OpID: [16]byte(arr(16)), Tenant: text(255).Draw(t, "tenant"),
			Key: text(640).Draw(t, "key"), KeyVersion: rapid.Uint32().Draw(t, "version"), Alg: text(255).Draw(t, "alg"),
			Purpose: text(255).Draw(t, "purpose"), InputHash: [32]byte(arr(32)), Result: text(255).Draw(t, "result"),
			Actor: text(255).Draw(t, "actor"), Attestation: text(255).Draw(t, "att"), KeySeq: u64(), KeyPrev: u64(), Ref: u64(), Count: u64(),
			Detail: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "detail"),
			Sealed: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "sealed"),
		}
		b, err := r.AppendBinary([]byte("kept"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseRecord(b[4:])
		if err != nil {
			t.Fatal(err)
		}
		again, _ := got.AppendBinary(nil)
		z := fmt.Sprintf("%#v", *got)
		for _, p := range []*[]byte{&r.Detail, &r.Sealed} {
			if len(*p) == 0 {
				*p = nil
			}
		}
		a := fmt.Sprintf("%#v", *r)
		if string(b[:4]) != "kept" || !bytes.Equal(again, b[4:]) || a != z {
			t.Fatalf("%s\nbecame\n%s", a, z)
		}
	})
	b, err := vectorRecord().AppendBinary(nil)
	if err != nil || len(b) > 320 {
		t.Errorf("a signature takes %d bytes (%v)", len(b), err)
	}
}

// Not one byte of a record can change without another value, or a refusal. R-014.
func TestRecordFlips(t *testing.T) {
	t.Parallel()
	b, err := vectorRecord().AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			r, err := ParseRecord(c)
			if err != nil {
				continue
			}
			if again, err := r.AppendBinary(nil); err != nil || !bytes.Equal(again, c) {
				t.Fatalf("byte %d bit %d: two encodings of one record", i, bit)
			}
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	b, err := vectorRecord().AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		again, err := r.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x encoded again as %x (%v)", b, again, err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}

// The published frame, head and format hold, byte for byte.
func TestLogVectors(t *testing.T) {
	t.Parallel()
	var v struct {
		MACKey  string `json:"mac_key"`
		Format  string `json:"format"`
		PrevTag string `json:"frame_prev_tag"`
		Frame   string `json:"frame"`
		Root    string `json:"frame_root"`
		HeadGen uint64 `json:"head_generation"`
		Head    string `json:"head"`
	}
	loadJSON(t, "audit-log.json", &v)
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	mac := borrowedMAC(func(use func([]byte)) { use(unhex(v.MACKey)) })
	f, err := parseFormat([]byte(v.Format))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := vectorRecord().AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := append(make([]byte, frameHeader), byte(len(rec)>>8), byte(len(rec)))
	buf, tag, err := sealFrame(append(buf, rec...), 1, 0, [32]byte(unhex(v.PrevTag)), [32]byte(unhex(v.Root)), mac)
	if err != nil || hex.EncodeToString(buf) != v.Frame {
		t.Errorf("frame %x (%v)", buf, err)
	}
	if hex.EncodeToString(rfc6962.DefaultHasher.HashLeaf(rec)) != v.Root {
		t.Error("the root over one record is not its leaf hash")
	}
	b, err := head{state: headOpen, gen: v.HeadGen, size: 1, root: [32]byte(unhex(v.Root)), tag: tag}.encode(f.id, mac)
	if err != nil || hex.EncodeToString(b) != v.Head {
		t.Errorf("head %x (%v)", b, err)
	}
}
