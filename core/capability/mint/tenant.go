package mint

import (
	"strconv"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
)

// Roots are the root keys to mint with; core.TokenKeys are such.
type Roots interface {
	// Newest is the id of the key that new tokens are made with.
	Newest() string
	// Root lends a key, as [capability.Keys] says.
	Root(id string, use func(key []byte)) error
}

// ForTenant makes a token with the three caveats that every token needs, and
// further ones given as text, under the newest root key.
func ForTenant(roots Roots, tenant string, scopes []string, expiry time.Time, more ...string) (string, error) {
	scope, err := capability.ScopeCaveat(scopes...)
	if err != nil {
		return "", err
	}
	caveats := []capability.Caveat{scope}
	for _, text := range append([]string{"tenant=" + tenant, "exp=" + strconv.FormatInt(expiry.Unix(), 10)}, more...) {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			return "", err
		}
		caveats = append(caveats, c)
	}
	id := roots.Newest()
	return New(id, func(use func([]byte)) error { return roots.Root(id, use) }, caveats...)
}
