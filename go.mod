module github.com/rustyonions/ron-kms

go 1.26.0

require (
	filippo.io/age v1.3.2 // seals the root key under a passphrase
	github.com/awnumar/memguard v0.23.0 // locked, guarded memory for the arena of secrets
	github.com/caarlos0/env/v11 v11.4.2 // reads KMS_* variables into the configuration
	github.com/canonical/go-sp800.90a-drbg v0.0.0-20210314144037-6eeb1040d6c3 // the random generator of SP 800-90A (HMAC_DRBG)
	github.com/cloudflare/circl v1.6.5 // Ed25519 and ML-DSA that work on locked memory
	github.com/fxamacker/cbor/v2 v2.10.0 // CBOR of ron-auth v1 tokens
	github.com/go-json-experiment/json v1.27.2 // strict JSON: unknown, duplicate and wrong-case names refused
	github.com/google/go-tpm v0.9.8 // TPM 2.0: the audit anchor in NV memory
	github.com/google/uuid v1.6.0 // op_ids and key ids
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/spf13/cobra v1.10.2 // the command line
	github.com/transparency-dev/formats v0.1.1 // cosignatures of witnesses (C2SP tlog-cosignature)
	github.com/transparency-dev/merkle v0.0.2 // RFC 6962 hashing and compact ranges for the audit log
	go.etcd.io/bbolt v1.5.0 // the record store of the file backend
	golang.org/x/crypto v0.58.0 // ChaCha20-Poly1305
	golang.org/x/mod v0.42.0 // signed notes, tiles and proofs (C2SP) of the audit log
	golang.org/x/sys v0.49.0 // flock, madvise, fdatasync
	golang.org/x/term v0.47.0 // asks for a passphrase without echo
	gopkg.in/macaroon.v2 v2.1.0 // the chain of tags in capability tokens
	lukechampine.com/blake3 v1.4.1 // BLAKE3 digests
)

// Test dependencies.
require (
	github.com/rogpeppe/go-internal v1.16.0 // scripts that drive the real command line
	go.uber.org/goleak v1.3.0 // finds goroutines that outlive their owner
	pgregory.net/rapid v1.3.0 // property tests against models
)

require (
	filippo.io/hpke v0.4.0 // indirect
	filippo.io/mldsa v1.0.0 // indirect
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/klauspost/cpuid/v2 v2.0.9 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	golang.org/x/tools v0.51.0 // indirect
	golang.org/x/xerrors v0.0.0-20200804184101-5ec99f83aff1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
