package notekey

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestNewSignerRefuses(t *testing.T) {
	t.Parallel()
	ed := edKey(1).Public().(ed25519.PublicKey)
	public, _ := mlKey(1)
	sign := func([]byte) ([]byte, error) { return nil, nil }
	for name, c := range map[string]struct {
		make func() (*Signer, error)
		want string
	}{
		"no function":        {func() (*Signer, error) { return NewEd25519(logName, ed, nil) }, "nothing signs"},
		"no clock":           {func() (*Signer, error) { return NewMLDSA44(logName, public.Bytes(), sign, nil) }, "clock"},
		"no name":            {func() (*Signer, error) { return NewEd25519("", ed, sign) }, "key name"},
		"plus in name":       {func() (*Signer, error) { return NewEd25519("a+b", ed, sign) }, "key name"},
		"name of 256 bytes":  {func() (*Signer, error) { return NewMLDSA44(strings.Repeat("n", 256), public.Bytes(), sign, clock) }, "key name"},
		"ML-DSA key as Ed":   {func() (*Signer, error) { return NewEd25519(logName, public.Bytes(), sign) }, "bytes"},
		"Ed key as ML-DSA":   {func() (*Signer, error) { return NewMLDSA44(logName, ed, sign, clock) }, "bytes"},
		"key of small order": {func() (*Signer, error) { return NewEd25519(logName, make([]byte, 32), sign) }, "small order"},
	} {
		s, err := c.make()
		if s != nil {
			t.Errorf("%s: returned a signer", name)
		}
		t.Run(name, func(t *testing.T) { mustRefuse(t, err, c.want) })
	}
}

// What a broken custodian returns does not get into a note. R-271.
func TestSignerChecksItself(t *testing.T) {
	t.Parallel()
	text := []byte(checkpointText(logName, 7))
	ed, other := edKey(1), edKey(2)
	public, _ := mlKey(1)
	broken := errors.New("custodian is gone")
	newEd := func(f SignFunc) (*Signer, error) { return NewEd25519(logName, ed.Public().(ed25519.PublicKey), f) }
	newML := func(f SignFunc, clock func() time.Time) (*Signer, error) {
		return NewMLDSA44(logName, public.Bytes(), f, clock)
	}
	for name, c := range map[string]struct {
		make func() (*Signer, error)
		msg  []byte
		want string
	}{
		"error":   {func() (*Signer, error) { return newEd(func([]byte) ([]byte, error) { return nil, broken }) }, text, broken.Error()},
		"nothing": {func() (*Signer, error) { return newEd(func([]byte) ([]byte, error) { return nil, nil }) }, text, "does not verify"},
		"another key": {func() (*Signer, error) {
			return newEd(func(m []byte) ([]byte, error) { return ed25519.Sign(other, m), nil })
		}, text, "does not verify"},
		"another ML-DSA key": {func() (*Signer, error) { return newML(mlSignFunc(2, ""), clock) }, text, "does not verify"},
		"a context":          {func() (*Signer, error) { return newML(mlSignFunc(1, "ron-kms/v1"), clock) }, text, "does not verify"},
		"time 0":             {func() (*Signer, error) { return newML(mlSignFunc(1, ""), func() time.Time { return time.Unix(0, 1) }) }, text, "before 1970"},
		"negative time":      {func() (*Signer, error) { return newML(mlSignFunc(1, ""), func() time.Time { return time.Time{} }) }, text, "before 1970"},
		"ML-DSA of no checkpoint": {func() (*Signer, error) { return newML(mlSignFunc(1, ""), clock) },
			[]byte("hello\n"), "three lines"},
	} {
		s, err := c.make()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sig, err := s.Sign(c.msg)
		if sig != nil {
			t.Errorf("%s: returned a signature", name)
		}
		t.Run(name, func(t *testing.T) { mustRefuse(t, err, c.want) })
	}
}

// The ML-DSA-44 half covers the name of the signer, the time and each line, whichever way the text is asked about.
func TestMLDSA44Covers(t *testing.T) {
	t.Parallel()
	s := mlSigner(t, logName, 1)
	text := checkpointText(logName, 7)
	sig, err := s.Sign([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.BigEndian.Uint64(sig); got != uint64(clock().Unix()) {
		t.Errorf("states the time %d", got)
	}
	v := s.Verifier()
	if !v.Verify([]byte(text), sig) {
		t.Fatal("refuses its own signature")
	}
	later := append([]byte(nil), sig...)
	later[timestampSize-1]++
	// A time that no verifier may accept, properly signed.
	c, err := parseStatement(text)
	if err != nil {
		t.Fatal(err)
	}
	b, err := mlSignFunc(1, "")(c.cosignedMessage(logName, math.MaxInt64+1))
	if err != nil {
		t.Fatal(err)
	}
	never := append(binary.BigEndian.AppendUint64(nil, math.MaxInt64+1), b...)
	for name, r := range map[string]struct {
		v    *Verifier
		text string
		sig  []byte
	}{
		"another name":      {mlSigner(t, logName+"x", 1).Verifier(), text, sig},
		"another key":       {mlSigner(t, logName, 2).Verifier(), text, sig},
		"another origin":    {v, checkpointText("log.example/audit/0124", 7), sig},
		"another size":      {v, checkpointText(logName, 8), sig},
		"another root":      {v, strings.Replace(text, "w8PD", "w8PE", 1), sig},
		"another time":      {v, text, later},
		"time beyond 2^63":  {v, text, never},
		"extension line":    {v, text + "extension\n", sig},
		"size in two forms": {v, checkpointText(logName, 7)[:len(logName)+1] + "0" + checkpointText(logName, 7)[len(logName)+1:], sig},
		"no signature":      {v, text, nil},
		"only a time":       {v, text, sig[:timestampSize]},
		"cut":               {v, text, sig[:len(sig)-1]},
		"long":              {v, text, append(sig[:len(sig):len(sig)], 0)},
	} {
		if r.v.Verify([]byte(r.text), r.sig) {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseStatementRefuses(t *testing.T) {
	t.Parallel()
	root := "w8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8M="
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "three lines"},
		"two lines":          {logName + "\n7\n", "three lines"},
		"no final line feed": {logName + "\n7\n" + root, "three lines"},
		"extension line":     {logName + "\n7\n" + root + "\nextra\n", "three lines"},
		"empty line after":   {logName + "\n7\n" + root + "\n\n", "three lines"},
		"no origin":          {"\n7\n" + root + "\n", "origin"},
		"long origin":        {strings.Repeat("o", 256) + "\n7\n" + root + "\n", "origin"},
		"control in origin":  {"a\rb\n7\n" + root + "\n", "origin"},
		"origin not UTF-8":   {"a\xff\n7\n" + root + "\n", "origin"},
		"no size":            {logName + "\n\n" + root + "\n", "size"},
		"leading zero":       {logName + "\n07\n" + root + "\n", "size"},
		"sign":               {logName + "\n+7\n" + root + "\n", "size"},
		"negative":           {logName + "\n-7\n" + root + "\n", "size"},
		"space":              {logName + "\n7 \n" + root + "\n", "size"},
		"2^63":               {logName + "\n9223372036854775808\n" + root + "\n", "size"},
		"2^64":               {logName + "\n18446744073709551616\n" + root + "\n", "size"},
		"short root":         {logName + "\n7\nw8PD\n", "32 bytes"},
		"stray bits":         {logName + "\n7\n" + strings.Replace(root, "M=", "N=", 1) + "\n", "32 bytes"},
		"return in root":     {logName + "\n7\n" + root + "\r\n", "canonical"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseStatement(c.text)
			mustRefuse(t, err, c.want)
		})
	}
	for _, size := range []uint64{0, 1, math.MaxInt64} {
		if _, err := parseStatement(checkpointText(logName, size)); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	text := checkpointText(logName, 7)
	_, err := Sign(text)
	mustRefuse(t, err, "no signers")
	_, err = Sign(text+"extension\n", k.signers...)
	mustRefuse(t, err, "three lines")
	_, err = Sign(text, k.ed(), k.ml(), k.ed())
	mustRefuse(t, err, "two signatures")
}

// The log's own signatures come first, whoever else signs. R-271.
func TestSignOrder(t *testing.T) {
	t.Parallel()
	k := newKeyring(t, logName, 1)
	w := edSigner(t, "witness.example", 3)
	raw := mustSign(t, checkpointText(logName, 7), w, k.ml(), k.ed())
	if _, further, err := k.set.VerifyCosigned(raw); err != nil || len(further) != 1 || further[0].Name != w.Name() {
		t.Errorf("%+v, %v", further, err)
	}
}
