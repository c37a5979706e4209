// Package oracles compares ron-kms with what others have written: the vectors
// of Project Wycheproof and of NIST, the Ed25519 edge cases of "Taming the many
// EdDSAs", and the libraries filippo.io/mldsa, tink-go and crypto/ed25519. It
// has no code but tests.
package oracles
