package notekey

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// both is the signers that a handover from a to b needs.
func both(a, b keyring) []note.Signer { return slices.Concat(a.signers, b.signers) }

func mustHandover(t testing.TB, first *Set, chain []byte, size uint64, next *Set, signers ...note.Signer) []byte {
	t.Helper()
	l, err := NewHandover(first, chain, size, next, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The three handovers of most tests: 1 → 2 at 100, 2 → 3 at 250, 3 → 4 at 251.
func chainOfThree(t testing.TB) (keys []keyring, links [][]byte) {
	t.Helper()
	for seed := byte(1); seed <= 4; seed++ {
		keys = append(keys, newKeyring(t, logName, seed))
	}
	var chain []byte
	for i, size := range []uint64{100, 250, 251} {
		l := mustHandover(t, keys[0].set, chain, size, keys[i+1].set, both(keys[i], keys[i+1])...)
		links, chain = append(links, l), append(chain, l...)
	}
	return keys, links
}

// The keys of a log can be replaced, and replaced again, and what each set signed stays verifiable. R-271.
func TestChain(t *testing.T) {
	t.Parallel()
	keys, links := chainOfThree(t)
	for n := range len(links) + 1 {
		chain, latest, err := ParseChain(keys[0].set, slices.Concat(links[:n]...))
		if err != nil {
			t.Fatal(err)
		}
		if len(chain) != n+1 || latest.String() != keys[n].set.String() {
			t.Fatalf("%d handovers lead to %d sets, the last by %s", n, len(chain), latest)
		}
		for i, from := range []uint64{0, 101, 251, 252}[:n+1] {
			if chain[i].From != from || chain[i].Set.String() != keys[i].set.String() {
				t.Errorf("set %d begins at %d, not at %d", i, chain[i].From, from)
			}
		}
	}
	chain, _, err := ParseChain(keys[0].set, slices.Concat(links...))
	if err != nil {
		t.Fatal(err)
	}
	for size, i := range map[uint64]int{0: 0, 1: 0, 100: 0, 101: 1, 250: 1, 251: 2, 252: 3, math.MaxInt64: 3} {
		text := checkpointText(logName, size)
		for j, k := range keys {
			_, err := chain.At(size).Verify(mustSign(t, text, k.signers...))
			if (err == nil) != (i == j) {
				t.Errorf("a checkpoint over %d records by set %d: %v", size, j, err)
			}
		}
	}
}

// The bytes are those of docs/spec/audit-keys.md, computed here by hand, and each of the signed parts is a checkpoint that
// any tool can open.
func TestHandoverFormat(t *testing.T) {
	t.Parallel()
	keys, links := chainOfThree(t)
	previous := sha256.Sum256([]byte(keys[0].set.String() + "\n"))
	for i, size := range []int{100, 250, 251} {
		old, new := keys[i], keys[i+1]
		text := fmt.Sprintf("ron-kms audit handover v1\n%s\n%d\n%d\n%s\n%s\n%s\n",
			logName, i+1, size, hex.EncodeToString(previous[:]), old.set, new.set)
		rest, ok := strings.CutPrefix(string(links[i]), text+"\n")
		if !ok {
			t.Fatalf("the text of handover %d is not as specified", i+1)
		}
		previous = sha256.Sum256([]byte(text))
		signed, ok := strings.CutSuffix(rest, "\n")
		if !ok {
			t.Fatal("no empty line at the end")
		}
		n, err := note.Open([]byte(signed), note.VerifierList(old.ed().Verifier(), old.ml().Verifier(), new.ed().Verifier(), new.ml().Verifier()))
		if err != nil {
			t.Fatal(err)
		}
		if want := (statement{logName + "/handover", uint64(i + 1), previous}).text(); n.Text != want || len(n.Sigs) != 4 || len(n.UnverifiedSigs) != 0 {
			t.Errorf("signed %d times: %q", len(n.Sigs), n.Text)
		}
	}
}

// A key may stay, a half may join, but none may be left out. R-271.
func TestHandoverOfOneKey(t *testing.T) {
	t.Parallel()
	a, b := newKeyring(t, logName, 1), newKeyring(t, logName, 2)
	classical := newTestSet(t, a.ed())
	upgrade := mustHandover(t, classical, nil, 10, a.set, a.ed(), a.ml())
	mixed := newTestSet(t, a.ed(), b.ml())
	replace := mustHandover(t, classical, upgrade, 20, mixed, a.ed(), a.ml(), b.ml())
	chain, latest, err := ParseChain(classical, slices.Concat(upgrade, replace))
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || latest.String() != mixed.String() {
		t.Errorf("%d sets, the last %s", len(chain), latest)
	}
	_, err = NewHandover(a.set, nil, 10, classical, a.signers...)
	mustRefuse(t, err, "none of type 0x06")
	_, err = NewHandover(a.set, nil, 10, newTestSet(t, a.ml()), a.signers...)
	mustRefuse(t, err, "none of type 0x01")
}

//
func TestNewHandoverRefuses(t *testing.T) {
	t.Parallel()
	keys, links := chainOfThree(t)
	a, b, c := keys[0], keys[1], keys[2]
	first := links[0]
	for name, r := range map[string]struct {
		chain   []byte
		size    uint64
		next    *Set
		signers []note.Signer
		want    string
	}{
		"old keys alone":         {nil, 100, b.set, a.signers, "is not by"},
		"new keys alone":         {nil, 100, b.set, b.signers, "is not by"},
		"new Ed25519 missing":    {nil, 100, b.set, []note.Signer{a.ed(), a.ml(), b.ml()}, "is not by"},
		"new ML-DSA-44 missing":  {nil, 100, b.set, []note.Signer{a.ed(), a.ml(), b.ed()}, "is not by"},
		"old Ed25519 missing":    {nil, 100, b.set, []note.Signer{a.ml(), b.ed(), b.ml()}, "is not by"},
		"old ML-DSA-44 missing":  {nil, 100, b.set, []note.Signer{a.ed(), b.ed(), b.ml()}, "is not by"},
		"others as well":         {nil, 100, b.set, slices.Concat(a.signers, b.signers, c.signers), "is not by"},
		"a witness as well":      {nil, 100, b.set, append(both(a, b), mlSigner(t, "w.example", 8)), "signed by w.example too"},
		"nobody":                 {nil, 100, b.set, nil, "no signers"},
		"no new keys":            {nil, 100, nil, a.signers, "not of this log"},
		"the same keys":          {nil, 100, a.set, a.signers, "the old ones"},
		"keys of another log":    {nil, 100, newKeyring(t, "other.example", 2).set, both(a, b), "not of this log"},
		"an empty log":           {nil, 0, b.set, both(a, b), "do not sign for the size 0"},
		"beyond all sizes":       {nil, math.MaxInt64 + 1, b.set, both(a, b), "do not sign for the size"},
		"an earlier size":        {first, 99, c.set, both(b, c), "do not sign for the size 99"},
		"the same size":          {first, 100, c.set, both(b, c), "do not sign for the size 100"},
		"keys that were retired": {first, 200, a.set, both(a, b), "retired"},
		"a key that was retired": {first, 200, newTestSet(t, c.ed(), a.ml()), []note.Signer{b.ed(), b.ml(), c.ed(), a.ml()}, "retired"},
		"by keys retired before": {first, 200, c.set, both(a, c), "is not by"},
		"after a broken chain":   {first[1:], 200, c.set, both(b, c), "1: the signed statement is not about this text"},
		"after a chain cut":      {first[:len(first)-1], 200, c.set, both(b, c), "1: cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := NewHandover(a.set, r.chain, r.size, r.next, r.signers...)
			if l != nil {
				t.Error("returned a handover")
			}
			mustRefuse(t, err, r.want)
		})
	}
	_, err := NewHandover(nil, nil, 100, b.set, both(a, b)...)
	mustRefuse(t, err, "no first")
}

// forge writes and signs h whatever it says.
func forge(t testing.TB, h *handover, signers ...note.Signer) []byte {
	t.Helper()
	return link{h.text(), mustSign(t, h.statement().text(), signers...)}.encode()
}

// Forks, gaps, other orders and foreign handovers are refused, however well they are signed..
func TestParseChainRefuses(t *testing.T) {
	t.Parallel()
	keys, links := chainOfThree(t)
	a, b, c, d := keys[0], keys[1], keys[2], keys[3]
	zero := sha256.Sum256([]byte(a.set.String() + "\n"))
	chain, err := parseChain(a.set, links[0])
	if err != nil {
		t.Fatal(err)
	}
	one := chain.last
	fork := mustHandover(t, a.set, nil, 100, c.set, both(a, c)...)
	other := newKeyring(t, "other.example", 2)

	// A text in another form, signed as it is.
	rewrite := func(l []byte, from, to string, signers ...note.Signer) []byte {
		cut, _, err := cutLink(l)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(cut.text, from, to, 1)
		if text == cut.text {
			t.Fatalf("no %q", from)
		}
		s := statement{logName + handoverSuffix, 1, sha256.Sum256([]byte(text))}
		return link{text, mustSign(t, s.text(), signers...)}.encode()
	}
	restate := func(s statement) []byte {
		cut, _, err := cutLink(links[0])
		if err != nil {
			t.Fatal(err)
		}
		return link{cut.text, mustSign(t, s.text(), both(a, b)...)}.encode()
	}
	good := (&handover{logName, 1, 100, zero, a.set, b.set}).statement()
	root := good.root
	root[0] ^= 1

	for name, r := range map[string]struct {
		data []byte
		want string
	}{
		"first missing":           {slices.Concat(links[1], links[2]), "1: its number"},
		"middle missing":          {slices.Concat(links[0], links[2]), "2: its number"},
		"other order":             {slices.Concat(links[1], links[0], links[2]), "1: its number"},
		"repeated":                {slices.Concat(links[0], links[0]), "2: the new keys are the old ones"},
		"fork after":              {slices.Concat(links[0], fork), "2: the old keys do not sign"},
		"fork instead":            {slices.Concat(fork, links[1], links[2]), "2: the new keys are the old ones"},
		"nothing but a line feed": {[]byte("\n"), "1: cut short"},
		"more line feeds":         {append(bytes.Clone(links[0]), '\n'), "2: cut short"},
		"a byte before":           {append([]byte(" "), links[0]...), "1: the signed statement is not about this text"},
		"no end":                  {links[0][:len(links[0])-1], "1: cut short"},
		"too long":                {slices.Concat([]byte(strings.Repeat("x", maxNote)), links[0]), "1: too long"},

		"number 0":                {forge(t, &handover{logName, 0, 100, zero, a.set, b.set}, both(a, b)...), "its number"},
		"number 2":                {forge(t, &handover{logName, 2, 100, zero, a.set, b.set}, both(a, b)...), "its number"},
		"size 0":                  {forge(t, &handover{logName, 1, 0, zero, a.set, b.set}, both(a, b)...), "size 0"},
		"size of 64 bits":         {forge(t, &handover{logName, 1, 1 << 63, zero, a.set, b.set}, both(a, b)...), "tree size"},
		"another log":             {forge(t, &handover{"other.example", 1, 100, zero, a.set, b.set}, both(a, b)...), "its origin"},
		"keys of another log":     {forge(t, &handover{logName, 1, 100, zero, a.set, other.set}, both(a, other)...), "not of this log"},
		"hash of something else":  {forge(t, &handover{logName, 1, 100, one, a.set, b.set}, both(a, b)...), "its hash"},
		"from keys of others":     {forge(t, &handover{logName, 1, 100, zero, c.set, b.set}, both(c, b)...), "its set of old keys"},
		"by keys of others":       {forge(t, &handover{logName, 1, 100, zero, a.set, b.set}, both(c, d)...), "is not by"},
		"by the old alone":        {forge(t, &handover{logName, 1, 100, zero, a.set, b.set}, a.signers...), "is not by"},
		"by the new alone":        {forge(t, &handover{logName, 1, 100, zero, a.set, b.set}, b.signers...), "is not by"},
		"by one more":             {forge(t, &handover{logName, 1, 100, zero, a.set, b.set}, append(both(a, b), edSigner(t, "w.example", 8))...), "too"},
		"without the ML-DSA half": {forge(t, &handover{logName, 1, 100, zero, a.set, newTestSet(t, b.ed())}, a.ed(), a.ml(), b.ed()), "none of type"},
		"back to the first keys":  {slices.Concat(links[0], forge(t, &handover{logName, 2, 200, one, b.set, a.set}, both(b, a)...)), "2: the key"},
		"earlier in the log":      {slices.Concat(links[0], forge(t, &handover{logName, 2, 100, one, b.set, c.set}, both(b, c)...)), "2: the old keys do not sign"},
		"first hash again":        {slices.Concat(links[0], forge(t, &handover{logName, 2, 200, zero, b.set, c.set}, both(b, c)...)), "2: its hash"},

		"another version":    {rewrite(links[0], " v1\n", " v2\n", both(a, b)...), "its header"},
		"leading zero":       {rewrite(links[0], "\n100\n", "\n0100\n", both(a, b)...), "tree size"},
		"capital hash":       {rewrite(links[0], hex.EncodeToString(zero[:]), strings.ToUpper(hex.EncodeToString(zero[:])), both(a, b)...), "its hash"},
		"old keys in a row":  {rewrite(links[0], a.set.String(), a.ml().Verifier().String()+" "+a.ed().Verifier().String(), both(a, b)...), "its set of old"},
		"new keys in a row":  {rewrite(links[0], b.set.String(), b.ml().Verifier().String()+" "+b.ed().Verifier().String(), both(a, b)...), "its set of new"},
		"two spaces":         {rewrite(links[0], " "+b.ml().Verifier().String(), "  "+b.ml().Verifier().String(), both(a, b)...), "its set of new"},
		"one line more":      {rewrite(links[0], "\n100\n", "\n100\n100\n", both(a, b)...), "not seven lines"},
		"one line less":      {rewrite(links[0], "\n100\n", "\n", both(a, b)...), "not seven lines"},
		"keys that are none": {rewrite(links[0], b.set.String(), "x", both(a, b)...), "the new keys"},

		"signed number":      {restate(statement{good.origin, 2, good.root}), "not about this handover"},
		"signed hash":        {restate(statement{good.origin, 1, root}), "not about this text"},
		"signed as a log":    {restate(statement{logName, 1, good.root}), "not about this handover"},
		"signed for another": {restate(statement{"other.example/handover", 1, good.root}), "not about this handover"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spans, latest, err := ParseChain(a.set, r.data)
			if spans != nil || latest != nil {
				t.Error("returned a chain")
			}
			mustRefuse(t, err, r.want)
		})
	}
	_, _, err = ParseChain(b.set, slices.Concat(links...))
	mustRefuse(t, err, "1: ")
	_, _, err = ParseChain(nil, nil)
	mustRefuse(t, err, "no first")
}

// No byte of a handover can change or go. In the long runs of base64, the ML-DSA-44 keys and signatures, one byte of 32
// stands for the others. R-271.
func TestParseChainAltered(t *testing.T) {
	t.Parallel()
	a, b := newKeyring(t, logName, 1), newKeyring(t, logName, 2)
	good := mustHandover(t, a.set, nil, 100, b.set, both(a, b)...)
	if _, _, err := ParseChain(a.set, good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		edge := bytes.ContainsAny(good[max(0, i-40):min(len(good), i+8)], " \n")
		if i%(32*stride) != 0 && !edge {
			continue
		}
		if _, _, err := ParseChain(a.set, slices.Concat(good[:i], []byte{good[i] ^ 1}, good[i+1:])); err == nil {
			t.Errorf("byte %d flipped: accepted", i)
		}
		if _, _, err := ParseChain(a.set, slices.Delete(slices.Clone(good), i, i+1)); err == nil {
			t.Errorf("byte %d removed: accepted", i)
		}
	}
}

// A checkpoint that is signed as a handover is no handover, and the other way round: neither passes for the other.
func TestHandoverIsNoCheckpoint(t *testing.T) {
	t.Parallel()
	a, b := newKeyring(t, logName, 1), newKeyring(t, logName, 2)
	l, _, err := cutLink(mustHandover(t, a.set, nil, 100, b.set, both(a, b)...))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Set{a.set, b.set} {
		_, _, err := s.VerifyCosigned(l.note)
		mustRefuse(t, err, "not of "+logName)
	}
}
