// Implementations and vectors of others, which ours are compared with. They are
// a module of their own, so that the product's go.mod lists only what the
// product is built from.
module github.com/rustyonions/ron-kms/tests/oracles

go 1.26.4

require (
	filippo.io/mldsa v1.0.0 // ML-DSA as Go 1.27 has it
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a // Project Wycheproof's vectors, embedded
	github.com/cloudflare/circl v1.6.5 // the product's own library, where its API is wider than core/alg
	github.com/google/uuid v1.6.0 // op_ids
	github.com/rustyonions/ron-kms v0.0.0 // the product
	github.com/tink-crypto/tink-go/v2 v2.9.0 // HPKE with X-Wing, ML-DSA, Ed25519, HKDF and AEADs
	golang.org/x/crypto v0.58.0 // ChaCha20-Poly1305 as core/alg calls it
)

require (
	filippo.io/age v1.3.2 // indirect
	filippo.io/hpke v0.4.0 // indirect
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/awnumar/memguard v0.23.0 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/caarlos0/env/v11 v11.4.2 // indirect
	github.com/canonical/go-sp800.90a-drbg v0.0.0-20210314144037-6eeb1040d6c3 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/go-json-experiment/json v1.27.2 // indirect
	github.com/klauspost/cpuid/v2 v2.0.9 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_golang v1.25.0 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/transparency-dev/merkle v0.0.2 // indirect
	go.etcd.io/bbolt v1.5.0 // indirect
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/xerrors v0.0.0-20200804184101-5ec99f83aff1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	gopkg.in/macaroon.v2 v2.1.0 // indirect
	lukechampine.com/blake3 v1.4.1 // indirect
)

replace github.com/rustyonions/ron-kms => ../..
