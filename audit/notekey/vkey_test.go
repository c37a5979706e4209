package notekey

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// vkeyOf encodes a key as signed-note has it, independently of the code under test.
func vkeyOf(name string, typed []byte) string {
	sum := sha256.Sum256([]byte(name + "\n" + string(typed)))
	return fmt.Sprintf("%s+%x+%s", name, sum[:4], base64.StdEncoding.EncodeToString(typed))
}

//
func TestParseVKey(t *testing.T) {
	t.Parallel()
	ed := edKey(1).Public().(ed25519.PublicKey)
	ml, _ := mlKey(1)
	for name, typed := range map[string][]byte{
		"ed25519":   append([]byte{1}, ed...),
		"ml-dsa-44": append([]byte{6}, ml.Bytes()...),
	} {
		text := vkeyOf(logName, typed)
		v, err := ParseVKey(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if v.Name() != logName || v.String() != text {
			t.Errorf("%s: parsed as %q", name, v)
		}
	}
	// The other implementation agrees about the key of the type that it knows.
	if other, err := note.NewVerifier(edSigner(t, logName, 1).Verifier().String()); err != nil {
		t.Error(err)
	} else if got := edSigner(t, logName, 1).KeyHash(); got != other.KeyHash() {
		t.Errorf("key hash %08x, golang.org/x/mod has %08x", got, other.KeyHash())
	}
}

// A key has one text, and only keys of the two types have one..
func TestParseVKeyRefuses(t *testing.T) {
	t.Parallel()
	ed := append([]byte{1}, edKey(1).Public().(ed25519.PublicKey)...)
	public, _ := mlKey(1)
	ml := append([]byte{6}, public.Bytes()...)
	typed := func(b byte, key []byte) []byte { return append([]byte{b}, key[1:]...) }
	good := vkeyOf(logName, ed)
	// 33 bytes need no padding, and so have no stray bits; 1313 bytes leave two.
	strayBits := func(s string) string {
		i := strings.LastIndexByte(s, '=') - 1
		return s[:i] + string(s[i]+1) + s[i+1:]
	}
	identity := make([]byte, 33) // the point of order 1, which signs anything
	identity[0], identity[1] = 1, 1
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "not name+hash+key"},
		"name alone":           {logName, "not name+hash+key"},
		"without key":          {logName + "+00000000", "not name+hash+key"},
		"empty key":            {logName + "+00000000+", "not base64"},
		"no name":              {vkeyOf("", ed), "key name"},
		"space in name":        {vkeyOf("a b", ed), "key name"},
		"unicode space":        {vkeyOf("a\u2003b", ed), "key name"},
		"control in name":      {vkeyOf("a\x00b", ed), "key name"},
		"delete in name":       {vkeyOf("a\x7fb", ed), "key name"},
		"not UTF-8":            {vkeyOf("a\xff", ed), "key name"},
		"name too long":        {vkeyOf(strings.Repeat("n", 256), ed), "key name"},
		"wrong hash":           {strings.Replace(good, "+", "+0", 1), "wrong hash"},
		"hash of another name": {"x" + good, "wrong hash"},
		"hash in capitals":     {logName + strings.ToUpper(good[len(logName):len(logName)+10]) + good[len(logName)+10:], "wrong hash"},
		"line feed inside":     {good[:len(good)-4] + "\n" + good[len(good)-4:], "canonical"},
		"return at the end":    {good + "\r", "canonical"},
		"space at the end":     {good + " ", "not base64"},
		"stray bits":           {strayBits(vkeyOf(logName, ml)), "not base64"},
		"no padding":           {strings.TrimRight(vkeyOf(logName, ml), "="), "not base64"},
		"url alphabet":         {logName + "+00000000+AQ-_", "not base64"},
		"short Ed25519":        {vkeyOf(logName, ed[:32]), "bytes"},
		"long Ed25519":         {vkeyOf(logName, append(ed[:33:33], 0)), "bytes"},
		"short ML-DSA":         {vkeyOf(logName, ml[:1312]), "bytes"},
		"long ML-DSA":          {vkeyOf(logName, append(ml[:1313:1313], 0)), "bytes"},
		"type and key swapped": {vkeyOf(logName, typed(6, ed)), "bytes"},
		"small order":          {vkeyOf(logName, identity), "small order"},
		"type 0x00":            {vkeyOf(logName, typed(0, ed)), "not accepted"},
		"type 0x02":            {vkeyOf(logName, typed(2, ed)), "not accepted"},
		"type 0x04":            {vkeyOf(logName, typed(4, ed)), "not accepted"},
		"type 0x05":            {vkeyOf(logName, typed(5, ed)), "not accepted"},
		"type 0xff":            {vkeyOf(logName, typed(0xff, ml)), "not accepted"},
		"private key":          {"PRIVATE+KEY+" + good, "base64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, err := ParseVKey(c.text)
			if v != nil {
				t.Error("returned a key")
			}
			mustRefuse(t, err, c.want)
		})
	}
}
