package oracles

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/backends"
	filestore "github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/coretest"
	"github.com/rustyonions/ron-kms/core/secret"
)

// speccheck are the twelve cases of K. Chalkias, F. Garillot and V. Nikolaenko,
// "Taming the many EdDSAs" (ia.cr/2020/1244), table 5, as published in
// github.com/novifinancial/ed25519-speccheck, cases.txt. Each has a message of
// 32 bytes. strict is the row "Dalek strict" of its results.md, which is the
// set that core/alg accepts; std the row "Go".
var speccheck = []struct {
	why           string
	msg, key, sig string
	strict, std   bool
}{
	{"A and R of small order, S = 0",
		"8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000", false, true},
	{"A of small order",
		"9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04", false, true},
	{"R of small order, A of mixed order",
		"aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab", "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e", false, true},
	{"A and R of mixed order",
		"9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79", "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
		"9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009", true, true},
	{"A and R of mixed order, valid with the cofactor only",
		"e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c", "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
		"160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09", false, false},
	{"A of mixed order, R of order L, valid with the cofactor only",
		"e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c", "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
		"21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405", false, false},
	{"S above L",
		"85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40", "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
		"e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514", false, false},
	{"S far above L",
		"85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40", "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
		"8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22", false, false},
	{"R not canonical, reduced before it is hashed",
		"9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41", "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f", false, false},
	{"R not canonical, hashed as it is",
		"9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41", "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908", false, false},
	{"A not canonical, reduced before it is hashed",
		"e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04", false, false},
	{"A not canonical, hashed as it is",
		"39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04", false, true},
}

// refusedKeys are the public keys of speccheck that cannot be parsed at all.
var refusedKeys = []string{
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa", // order 8
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", // order 2, x = 0 with the sign bit
}

// D-12: the strict set, one signature at a time. That crypto/ed25519 says what
// its row says shows that the cases are typed in rightly.
//
func TestSpeccheck(t *testing.T) {
	t.Parallel()
	if len(speccheck) != 12 {
		t.Fatalf("%d cases", len(speccheck))
	}
	for i, c := range speccheck {
		public, msg, sig := unhex(t, c.key), unhex(t, c.msg), unhex(t, c.sig)
		if got := ed25519.Verify(public, msg, sig); got != c.std {
			t.Errorf("case %d (%s): crypto/ed25519 says %t", i, c.why, got)
		}
		key, err := track(t, "ed25519").ParsePublic(public)
		if refused := slices.Contains(refusedKeys, c.key); errors.Is(err, alg.ErrPublicKey) != refused {
			t.Errorf("case %d (%s): key parsed: %v", i, c.why, err)
		}
		for _, scheme := range []alg.Scheme{alg.SchemeRaw, alg.SchemeRawB3} {
			if got := key.VerifyScheme(scheme, msg, sig); got != c.strict {
				t.Errorf("case %d (%s), scheme %s: %t", i, c.why, scheme, got)
			}
		}
	}
}

// D-12: the engine says the same to the cases one by one, all in one batch, and
// to each in a batch with good neighbours. No request brings a key, so the keys
// of the cases are put into the store by hand.
//
func TestSpeccheckEngine(t *testing.T) {
	t.Parallel()
	cfg := coretest.Config(t)
	coretest.Init(t, cfg)
	k := coretest.Open(t, cfg, core.Options{})
	s := coretest.Session(t, k, "acme")
	kids, swaps := map[string]string{}, map[string]string{}
	for _, c := range speccheck {
		if kids[c.key] == "" && !slices.Contains(refusedKeys, c.key) {
			kids[c.key] = createRaw(t, k, s)
			swaps[kids[c.key]] = c.key
		}
	}
	good := createRaw(t, k, s)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	replaceKeys(t, cfg, swaps)

	k = coretest.Open(t, cfg, core.Options{})
	s = coretest.Session(t, k, "acme")
	neighbour := api.VerifyRequest{PayloadB3: coretest.Digest(7), Sigs: coretest.Sign(t, k, s, good, coretest.Digest(7)).Sigs}
	items, want := []api.VerifyRequest{neighbour}, []bool{true}
	for i, c := range speccheck {
		kid, ok := kids[c.key]
		if !ok {
			continue
		}
		item := api.VerifyRequest{PayloadB3: c.msg, Sigs: []api.Signature{{KID: kid, Alg: "ed25519", SignatureB64: api.FormatBase64(unhex(t, c.sig))}}}
		single := coretest.Must[api.VerifyResponse](t, k, s, "verify", &item)
		if single.OK != c.strict {
			t.Errorf("case %d (%s): verify says %t", i, c.why, single.OK)
		}
		if got := batch(t, k, s, neighbour, item, neighbour); !slices.Equal(got, []bool{true, c.strict, true}) {
			t.Errorf("case %d (%s): between good neighbours: %t", i, c.why, got)
		}
		items, want = append(items, item), append(want, c.strict)
	}
	if len(items) != 9 {
		t.Fatalf("only %d cases reached the engine", len(items)-1)
	}
	if got := batch(t, k, s, items...); !slices.Equal(got, want) {
		t.Errorf("all in one batch: %t, want %t", got, want)
	}
}

// D-12: a store in which one of the refused keys was put, by someone who has
// even the key of its records, is not used.
func TestSpeccheckEngineRefusesKeys(t *testing.T) {
	t.Parallel()
	for _, public := range refusedKeys {
		cfg := coretest.Config(t)
		coretest.Init(t, cfg)
		k := coretest.Open(t, cfg, core.Options{})
		kid := createRaw(t, k, coretest.Session(t, k, "acme"))
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		replaceKeys(t, cfg, map[string]string{kid: public})
		k, err := core.Open(context.Background(), cfg, core.Options{Passphrase: func() ([]byte, error) { return []byte(coretest.Passphrase), nil }})
		if err == nil {
			t.Cleanup(func() { k.Close() })
			t.Errorf("key %s: the store opens", public)
		}
	}
}

func createRaw(t *testing.T, k *core.KMS, s *core.Session) string {
	t.Helper()
	return coretest.Must[api.CreateResponse](t, k, s, "create", &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: s.Tenant(), Purpose: "test", Alg: "ed25519", Scheme: api.SchemeRawB3,
	}).KID
}

func batch(t *testing.T, k *core.KMS, s *core.Session, items ...api.VerifyRequest) []bool {
	t.Helper()
	resp := coretest.Must[api.VerifyBatchResponse](t, k, s, "verify_batch", &api.VerifyBatchRequest{Items: items})
	got := make([]bool, len(resp.Results))
	for i, r := range resp.Results {
		got[i] = r.OK
	}
	if resp.OK == slices.Contains(got, false) {
		t.Errorf("ok is %t for %t", resp.OK, got)
	}
	return got
}

// replaceKeys gives keys of a closed store other public keys, as docs/spec/store.md
// describes its records. It authenticates them with the store's own key, which
// only who has the passphrase can.
func replaceKeys(t *testing.T, cfg *config.Config, swaps map[string]string) {
	t.Helper()
	b, err := filestore.Open(cfg.Dir, []byte(coretest.Passphrase), cfg.ArenaSize, secret.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	values := map[string][]byte{}
	revision, err := b.Load(t.Context(), func(name string, value []byte) error {
		values[name] = value
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var puts []backends.Put
	put := func(name string, change func(map[string]any)) {
		const overhead = 1 + 8 + sha256.Size
		if len(values[name]) < overhead {
			t.Fatalf("no record %s", name)
		}
		var record map[string]any
		if err := json.Unmarshal(values[name][overhead:], &record); err != nil {
			t.Fatal(err)
		}
		change(record)
		puts = append(puts, backends.Put{Key: name, Value: seal(t, b, name, revision+1, must(json.Marshal(record)))})
	}
	for kid, public := range swaps {
		parsed := must(api.ParseKID(kid))
		put("key/"+parsed.At(0).String(), func(record map[string]any) {
			version := record["versions"].([]any)[0].(map[string]any)
			version["tracks"].([]any)[0].(map[string]any)["public"] = base64.StdEncoding.EncodeToString(unhex(t, public))
		})
	}
	put("head", func(record map[string]any) { record["revision"] = revision + 1 })
	if _, err := b.Commit(t.Context(), revision, puts...); err != nil {
		t.Fatal(err)
	}
}

// seal makes an authentic record.
func seal(t *testing.T, b *filestore.Backend, name string, revision uint64, body []byte) []byte {
	t.Helper()
	key, err := b.StoreKey("ron-kms/v1/records", 32)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	msg := binary.BigEndian.AppendUint16([]byte("ron-kms/record/v1\x00"), uint16(len(name)))
	msg = append(msg, name...)
	msg = binary.BigEndian.AppendUint64(msg, revision)
	value := binary.BigEndian.AppendUint64([]byte{1}, revision)
	err = key.Use(func(k []byte) {
		h := hmac.New(sha256.New, k)
		h.Write(msg)
		h.Write(body)
		value = h.Sum(value)
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(value, body...)
}
