// Package token narrows capability tokens offline.
//
//	narrow, err := token.Attenuate(wide, "scope=kms:sign", "exp=1900000000")
//
// Whoever has a token can narrow it: this needs neither a key nor a server.
// The caveats are those of docs/spec/token.md. It is package capability of the
// engine with text in place of its types, and links no other part of it.
package token

import (
	"github.com/rustyonions/ron-kms/core/capability"
)

// Attenuate returns the token with further caveats, at least one, each
// "name=value". What comes out allows at most what went in. Errors are about
// the form of the token or a caveat, and repeat neither.
func Attenuate(token string, caveats ...string) (string, error) {
	list := make([]capability.Caveat, len(caveats))
	for i, text := range caveats {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			return "", err
		}
		list[i] = c
	}
	return capability.Attenuate(token, list...)
}

// Inspect reads what a token says about itself. Nothing of it is verified.
func Inspect(token string) (capability.Info, error) { return capability.Inspect(token) }
