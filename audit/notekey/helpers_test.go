package notekey

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"golang.org/x/mod/sumdb/note"
)

const logName = "log.example/audit/0123"

// A keyring is a log's private keys, and what is made of them.
type keyring struct {
	set     *Set
	signers []note.Signer // Ed25519, ML-DSA-44
}

func (k keyring) ed() *Signer { return k.signers[0].(*Signer) }
func (k keyring) ml() *Signer { return k.signers[1].(*Signer) }

func clock() time.Time { return time.Unix(1_790_000_000, 5) }

func edKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func edSigner(t testing.TB, name string, seed byte) *Signer {
	t.Helper()
	key := edKey(seed)
	s, err := NewEd25519(name, key.Public().(ed25519.PublicKey), func(msg []byte) ([]byte, error) { return ed25519.Sign(key, msg), nil })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mlKey(seed byte) (*mldsa44.PublicKey, *mldsa44.PrivateKey) {
	return mldsa44.NewKeyFromSeed((*[mldsa44.SeedSize]byte)(bytes.Repeat([]byte{seed}, mldsa44.SeedSize)))
}

// mlSignFunc signs with the context ctx; C2SP has none.
func mlSignFunc(seed byte, ctx string) SignFunc {
	_, key := mlKey(seed)
	return func(msg []byte) ([]byte, error) {
		sig := make([]byte, mldsa44.SignatureSize)
		return sig, mldsa44.SignTo(key, msg, []byte(ctx), true, sig)
	}
}

func mlSigner(t testing.TB, name string, seed byte) *Signer {
	t.Helper()
	public, _ := mlKey(seed)
	s, err := NewMLDSA44(name, public.Bytes(), mlSignFunc(seed, ""), clock)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKeyring(t testing.TB, name string, seed byte) keyring {
	t.Helper()
	ed, ml := edSigner(t, name, seed), mlSigner(t, name, seed)
	return keyring{newTestSet(t, ed, ml), []note.Signer{ed, ml}}
}

func newTestSet(t testing.TB, signers ...*Signer) *Set {
	t.Helper()
	var keys []*Verifier
	for _, s := range signers {
		keys = append(keys, s.Verifier())
	}
	set, err := NewSet(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func checkpointText(origin string, size uint64) string {
	root := bytes.Repeat([]byte{0xc3}, 32)
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root))
}

func mustSign(t testing.TB, text string, signers ...note.Signer) []byte {
	t.Helper()
	raw, err := Sign(text, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// signedLines writes a note by hand: whatever the lines are.
func signedLines(text string, lines ...string) []byte {
	return []byte(text + "\n" + strings.Join(lines, ""))
}

// sigLines returns the signature lines of a note.
func sigLines(t testing.TB, raw []byte) []string {
	t.Helper()
	_, block, ok := strings.Cut(string(raw), "\n\n")
	if !ok {
		t.Fatal("not a note")
	}
	return strings.SplitAfter(strings.TrimSuffix(block, "\n"), "\n")
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// mustRefuse reports an error that is missing, or that does not say what was wrong.
func mustRefuse(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Error("accepted")
	} else if !strings.Contains(err.Error(), want) {
		t.Errorf("refused with %q, which does not say %q", err, want)
	}
}
