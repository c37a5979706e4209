// Package mint makes capability tokens. It is apart from package capability
// so that a server, which verifies only, does not link it; the operator's
// command line does.
package mint

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gopkg.in/macaroon.v2"

	"github.com/rustyonions/ron-kms/core/capability"
)

// New makes a token under the root key that rootKeyID names, with a random
// identifier that tells the time of issue, and the given caveats in their
// order. The function use hands the
// 32 bytes of that key to its argument; they are neither kept nor changed.
//
// New refuses a root key id that is not valid, a key of another length, and a
// token that could never verify: without tenant, exp or scope, with more than
// 32 caveats, or longer than 4096 bytes.
func New(rootKeyID string, use func(use func(key []byte)) error, caveats ...capability.Caveat) (string, error) {
	var nonce [16]byte
	rand.Read(nonce[:]) // does not fail: crypto/rand ends the process instead
	return newWith(time.Now(), nonce, rootKeyID, use, caveats)
}

// newWith is New with time and random part given, for known-answer tests.
func newWith(now time.Time, nonce [16]byte, rootKeyID string, use func(use func(key []byte)) error, caveats []capability.Caveat) (string, error) {
	if !capability.ValidRootID(rootKeyID) {
		return "", errors.New("mint: the root key id is not [a-z0-9-]{1,32}")
	}
	id := "v2:" + rootKeyID + ":" + strconv.FormatInt(now.Unix(), 10) + ":" + hex.EncodeToString(nonce[:])
	var (
		m   *macaroon.Macaroon
		bad = errors.New("the root key was not given")
	)
	err := use(func(key []byte) {
		if len(key) != capability.RootKeyBytes {
			bad = fmt.Errorf("the root key is not %d bytes long", capability.RootKeyBytes)
			return
		}
		m, bad = macaroon.New(key, []byte(id), capability.Location, macaroon.V2)
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return "", fmt.Errorf("mint: %w", err)
	}
	for _, c := range caveats {
		if err := m.AddFirstPartyCaveat([]byte(c.String())); err != nil {
			return "", fmt.Errorf("mint: %w", err)
		}
	}
	raw, err := m.MarshalBinary()
	if err != nil {
		return "", fmt.Errorf("mint: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(raw)
	// The reader's own rules are the last word on what may leave here.
	info, err := capability.Inspect(token)
	if err != nil {
		return "", fmt.Errorf("mint: %w", err)
	}
	if info.Problem != "" {
		return "", fmt.Errorf("mint: the caveats make no token: %s", info.Problem)
	}
	return token, nil
}
