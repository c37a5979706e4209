// Package foreign hands an authentic token from the package that verified it
// to package capability, which makes a grant of it. It is internal, so that
// nothing outside of the packages that verify tokens can make a grant.
package foreign

// A Token is the content of a token whose issuer is proved.
type Token struct {
	// Root names the key that it was verified with, ID the token in audit
	// records.
	Root, ID string
	// Identifier is the part of the token that no other has.
	Identifier []byte
	// Issued is when it was made, in Unix seconds; 0 if it does not say.
	Issued int64
	// Caveats are the conditions as docs/spec/token.md writes them, in their
	// order.
	Caveats []string
}
