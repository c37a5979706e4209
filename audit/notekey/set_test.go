package notekey

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

//
func TestSetText(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	ed, ml := k.ed().Verifier().String(), k.ml().Verifier().String()
	want := ed + " " + ml
	for _, text := range []string{want, ml + " " + ed, ed + "\n" + ml + "\n", "\n " + ed + "  \n" + ml} {
		s, err := ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		if s.String() != want || s.Name() != logName || !s.Hybrid() {
			t.Errorf("%q is a set of %q, hybrid %t", text, s.Name(), s.Hybrid())
		}
	}
	for _, one := range []string{ed, ml} {
		s, err := ParseSet(one)
		if err != nil {
			t.Fatal(err)
		}
		if s.String() != one || s.Hybrid() {
			t.Errorf("a set of one key: hybrid %t, %q", s.Hybrid(), s)
		}
	}
}

func TestParseSetRefuses(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	ed, ml := k.ed().Verifier().String(), k.ml().Verifier().String()
	for name, c := range map[string]struct{ text, want string }{
		"empty":                 {"", "no keys"},
		"blank":                 {" \n", "no keys"},
		"not a key":             {ed + " x", "vkey"},
		"tab":                   {ed + "\t" + ml, "vkey"},
		"twice the same":        {ed + " " + ed, "two keys"},
		"two of one type":       {ed + " " + edSigner(t, logName, 2).Verifier().String(), "two keys"},
		"three keys":            {ed + " " + ml + " " + ed, "3 keys"},
		"two names":             {ed + " " + mlSigner(t, "other.example", 1).Verifier().String(), "keys of"},
		"name of handovers":     {edSigner(t, logName+"/handover", 1).Verifier().String(), "name of a log"},
		"no room for handovers": {edSigner(t, strings.Repeat("n", 247), 1).Verifier().String(), "name of a log"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSet(c.text)
			if s != nil {
				t.Error("returned a set")
			}
			mustRefuse(t, err, c.want)
		})
	}
	if _, err := ParseSet(edSigner(t, strings.Repeat("n", 246), 1).Verifier().String()); err != nil {
		t.Errorf("the longest name: %v", err)
	}
}

// A note signed by all keys is accepted, and its signatures stand in one order. R-271.
func TestSetVerify(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	text := checkpointText(logName, 7)
	for _, signers := range [][]note.Signer{k.signers, {k.ml(), k.ed()}} {
		got, err := k.set.Verify(mustSign(t, text, signers...))
		if err != nil || got != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, s := range []*Signer{k.ed(), k.ml()} {
		if got, err := newTestSet(t, s).Verify(mustSign(t, text, s)); err != nil || got != text {
			t.Errorf("one key: %q, %v", got, err)
		}
	}
}

// Both halves must hold, each by its key, for this log, and in the one form..
func TestSetVerifyRefuses(t *testing.T) {
	t.Parallel()
	k, other := newKeyring(t, logName, 1), newKeyring(t, logName, 2)
	text, next := checkpointText(logName, 7), checkpointText(logName, 8)
	good := mustSign(t, text, k.signers...)
	lines := sigLines(t, good)
	ed, ml := lines[0], lines[1]+"\n"
	otherLines := sigLines(t, mustSign(t, text, other.signers...))
	nextLines := sigLines(t, mustSign(t, next, k.signers...))
	if _, err := k.set.Verify(signedLines(text, ed, ml)); err != nil {
		t.Fatalf("the note from its parts: %v", err)
	}

	// The bytes of the ML-DSA line without its key ID, under that of the Ed25519 key, and the other way round.
	raw := func(line string) []byte {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(line[strings.LastIndexByte(line, ' ')+1:], "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	line := func(name string, b ...[]byte) string {
		return "— " + name + " " + base64.StdEncoding.EncodeToString(slices.Concat(b...)) + "\n"
	}
	edRaw, mlRaw := raw(ed), raw(ml)
	foreignName := edSigner(t, "other.example", 1)
	// 68 and 2432 bytes both end in two stray bits and one padding character.
	stray := func(l string) string {
		i := strings.IndexByte(l, '=') - 1
		return l[:i] + string(l[i]+1) + l[i+1:]
	}

	for name, c := range map[string]struct {
		note []byte
		want string
	}{
		"empty":                     {nil, "without signatures"},
		"text alone":                {[]byte(text), "without signatures"},
		"no lines":                  {signedLines(text), "cut short"},
		"no final line feed":        {good[:len(good)-1], "cut short"},
		"empty line at the end":     {append(good[:len(good):len(good)], '\n'), "malformed"},
		"Ed25519 alone":             {signedLines(text, ed), "line 2 is not by"},
		"ML-DSA-44 alone":           {signedLines(text, ml), "line 1 is not by"},
		"other order":               {signedLines(text, ml, ed), "line 1 is not by"},
		"Ed25519 twice":             {signedLines(text, ed, ed, ml), "two signatures by"},
		"ML-DSA-44 twice":           {signedLines(text, ed, ml, ml), "two signatures by"},
		"two ML-DSA-44 signatures":  {signedLines(text, ed, ml, sigLines(t, mustSign(t, text, k.ml()))[0]+"\n"), "two signatures by"},
		"all keys of another set":   {mustSign(t, text, other.signers...), "line 1 is not by"},
		"Ed25519 of another set":    {signedLines(text, otherLines[0], ml), "line 1 is not by"},
		"ML-DSA-44 of another set":  {signedLines(text, ed, otherLines[1]+"\n"), "line 2 is not by"},
		"another set too":           {signedLines(text, ed, ml, otherLines[0]), "too"},
		"Ed25519 of another text":   {signedLines(text, nextLines[0], ml), "invalid signature"},
		"ML-DSA-44 of another text": {signedLines(text, ed, nextLines[1]+"\n"), "invalid signature"},
		"text exchanged":            {signedLines(next, ed, ml), "invalid signature"},
		"names exchanged":           {signedLines(text, line("other.example", edRaw), ml), "line 1 is not by"},
		"name of another log":       {mustSign(t, checkpointText("other.example", 7), k.signers...), "not of " + logName},
		"origin of handovers":       {mustSign(t, checkpointText(logName+"/handover", 7), k.signers...), "not of " + logName},
		"signatures exchanged":      {signedLines(text, line(logName, edRaw[:4], mlRaw[4:]), line(logName, mlRaw[:4], edRaw[4:])), "invalid signature"},
		"extension line":            {signedExtension(t, k, text+"extension\n"), "three lines"},
		"a witness":                 {append(good[:len(good):len(good)], sigLines(t, mustSign(t, text, foreignName))[0]+"\n"...), "signed by other.example too"},
		"stray bits, Ed25519":       {signedLines(text, stray(ed), ml), "canonical base64"},
		"stray bits, ML-DSA-44":     {signedLines(text, ed, stray(ml)), "canonical base64"},
		"return in base64":          {signedLines(text, ed[:len(ed)-9]+"\r"+ed[len(ed)-9:], ml), "canonical base64"},
		"no padding":                {signedLines(text, strings.Replace(ed, "=", "", 1), ml), "canonical base64"},
		"space at the end":          {signedLines(text, strings.TrimSuffix(ed, "\n")+" \n", ml), "canonical base64"},
		"two spaces":                {signedLines(text, strings.Replace(ed, logName+" ", logName+"  ", 1), ml), "canonical base64"},
		"hyphen for the dash":       {signedLines(text, strings.Replace(ed, "—", "-", 1), ml), "malformed"},
		"key ID alone":              {signedLines(text, line(logName, edRaw[:4]), ml), "canonical base64"},
		"short Ed25519":             {signedLines(text, line(logName, edRaw[:67]), ml), "invalid signature"},
		"too long":                  {signedLines(text, ed, ml, line("w.example", randomBytes(maxNote))), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := k.set.Verify(c.note)
			if got != "" {
				t.Error("returned a text")
			}
			mustRefuse(t, err, c.want)
		})
	}
}

// signedExtension is a note with extension lines, both signatures as good as they can be: the Ed25519 key signs all lines,
// and ML-DSA-44 the first three, which is what tlog-cosignature says.
func signedExtension(t *testing.T, k keyring, text string) []byte {
	t.Helper()
	raw, err := note.Sign(&note.Note{Text: text}, k.ed(), &firstThree{k.ml()})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type firstThree struct{ *Signer }

func (f *firstThree) Sign(msg []byte) ([]byte, error) {
	return f.Signer.Sign([]byte(strings.Join(strings.SplitAfterN(string(msg), "\n", 4)[:3], "")))
}

// No byte of a note can change, go or be added. Going and adding is tried around each end of a line and, in between, at one byte of
// 16..
func TestSetVerifyEveryByte(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	good := mustSign(t, checkpointText(logName, 7), k.signers...)
	if _, err := k.set.Verify(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		edge := bytes.ContainsAny(good[max(0, i-40):min(len(good), i+8)], " \n")
		if i%stride != 0 && !edge {
			continue
		}
		bad := map[string][]byte{"flipped": slices.Concat(good[:i], []byte{good[i] ^ 1}, good[i+1:])}
		if i%16 == 0 || edge {
			bad["removed"] = slices.Delete(slices.Clone(good), i, i+1)
			bad["preceded"] = slices.Insert(slices.Clone(good), i, '\r')
			bad["the end"] = good[:i]
		}
		for what, b := range bad {
			if _, err := k.set.Verify(b); err == nil {
				t.Errorf("byte %d %s: accepted", i, what)
			}
		}
	}
}

// Cosignatures of others may follow; they are handed back, not believed. R-271.
func TestVerifyCosigned(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	text := checkpointText(logName, 7)
	w1, w2 := edSigner(t, "witness.example/1", 3), mlSigner(t, "witness.example/2", 4)
	good := mustSign(t, text, k.signers...)
	l1, l2 := sigLines(t, mustSign(t, text, w1))[0]+"\n", sigLines(t, mustSign(t, text, w2))[0]+"\n"
	with := func(lines ...string) []byte { return []byte(string(good) + strings.Join(lines, "")) }

	got, further, err := k.set.VerifyCosigned(with(l1, l2))
	if err != nil || got != text || len(further) != 2 {
		t.Fatalf("%q, %d further lines, %v", got, len(further), err)
	}
	for i, w := range []*Signer{w1, w2} {
		f := further[i]
		b, err := base64.StdEncoding.DecodeString(f.Base64)
		if err != nil || f.Name != w.Name() || f.Hash != w.KeyHash() || !w.Verifier().Verify([]byte(text), b[4:]) {
			t.Errorf("line %d came back as %+v", i, f)
		}
	}
	if got, further, err := k.set.VerifyCosigned(good); err != nil || got != text || len(further) != 0 {
		t.Errorf("without cosignatures: %q, %v, %v", got, further, err)
	}
	lines := sigLines(t, good)
	unknown := edSigner(t, logName, 9)
	for name, c := range map[string]struct {
		note []byte
		want string
	}{
		"unknown key of the log's name": {with(sigLines(t, mustSign(t, text, unknown))[0] + "\n"), "too"},
		"the same line twice":           {with(l1, l1), "two signatures"},
		"two lines of one key":          {with(l2, sigLines(t, mustSign(t, text, w2))[0]+"\n"), "two signatures"},
		"a witness first":               {signedLines(text, l1, lines[0], lines[1]+"\n"), "line 1 is not by"},
		"a witness for a half":          {signedLines(text, lines[0], l2), "line 2 is not by"},
		"a line that is none":           {with("signed\n"), "malformed"},
		"name with a plus":              {with(strings.Replace(l1, "witness", "wit+ness", 1)), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, further, err := k.set.VerifyCosigned(c.note)
			if got != "" || further != nil {
				t.Error("returned something")
			}
			mustRefuse(t, err, c.want)
		})
	}
}

// Two keys of one ID, whatever their types: other tools could not tell their signatures apart.
func TestSetRefusesEqualIDs(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	twin := *k.ml().Verifier()
	twin.hash = k.ed().KeyHash()
	_, err := NewSet(k.ed().Verifier(), &twin)
	mustRefuse(t, err, "the ID")
}
