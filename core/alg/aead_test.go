package alg_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"sync"
	"testing"
	"testing/cryptotest"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/secret"
	"github.com/rustyonions/ron-kms/tests/skip"
)

// openWith is openFrom for keys of KindAEAD.
func (k keyPair) openWith(t testing.TB, aad, blob []byte) (plaintext []byte, err error) {
	t.Helper()
	calls := 0
	err = k.track.OpenWith(k.expanded, aad, blob, func(p []byte) {
		calls++
		plaintext = bytes.Clone(p)
	})
	if (calls == 1) != (err == nil) {
		t.Errorf("use was called %d times, with error %v", calls, err)
	}
	return plaintext, err
}

// What is sealed opens under the same key and associated data only, every byte
// counts, and all refusals are one error.
func TestAEADSealOpen(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindAEAD) {
		a := newArena(t)
		k, other := generate(t, a, tr), generate(t, a, tr)
		for _, n := range []int{1, 32, alg.MaxDataKey} {
			data := make([]byte, n)
			rand.Read(data)
			blob, err := tr.SealWith(k.expanded, []byte("aad"), data)
			if err != nil || len(blob) != n+44 || cap(blob) != len(blob) {
				t.Fatalf("%s: %d bytes sealed to %d: %v", tr.Name(), n, len(blob), err)
			}
			if got, err := k.openWith(t, []byte("aad"), blob); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes: %v", tr.Name(), n, err)
			}
		}
		for _, n := range []int{0, alg.MaxDataKey + 1} {
			if _, err := tr.SealWith(k.expanded, nil, make([]byte, n)); err != alg.ErrDataKey {
				t.Errorf("%s: sealed %d bytes: %v", tr.Name(), n, err)
			}
		}
		blob, err := tr.SealWith(k.expanded, []byte("aad"), []byte("data key"))
		if err != nil {
			t.Fatal(err)
		}
		for name, open := range map[string]func() ([]byte, error){
			"other key":    func() ([]byte, error) { return other.openWith(t, []byte("aad"), blob) },
			"other aad":    func() ([]byte, error) { return k.openWith(t, []byte("aae"), blob) },
			"no aad":       func() ([]byte, error) { return k.openWith(t, nil, blob) },
			"empty":        func() ([]byte, error) { return k.openWith(t, []byte("aad"), nil) },
			"overhead":     func() ([]byte, error) { return k.openWith(t, []byte("aad"), blob[8:]) },
			"longer":       func() ([]byte, error) { return k.openWith(t, []byte("aad"), append(bytes.Clone(blob), 0)) },
			"beyond limit": func() ([]byte, error) { return k.openWith(t, []byte("aad"), make([]byte, alg.MaxDataKey+45)) },
		} {
			if got, err := open(); err != alg.ErrOpen || got != nil {
				t.Errorf("%s: %s: %v", tr.Name(), name, err)
			}
		}
		for i := range blob {
			bad := bytes.Clone(blob)
			bad[i] ^= 1 << (i % 8)
			if _, err := k.openWith(t, []byte("aad"), bad); err != alg.ErrOpen {
				t.Errorf("%s: byte %d: %v", tr.Name(), i, err)
			}
			if _, err := k.openWith(t, []byte("aad"), blob[:i]); err != alg.ErrOpen {
				t.Errorf("%s: cut to %d bytes: %v", tr.Name(), i, err)
			}
		}
		// The same bytes as key of the other algorithm open nothing.
		for _, foreign := range tracksOf(alg.KindAEAD) {
			if foreign == tr {
				continue
			}
			if _, err := (keyPair{foreign, k.expanded, k.public}).openWith(t, []byte("aad"), blob); err != alg.ErrOpen {
				t.Errorf("%s opens what %s sealed: %v", foreign.Name(), tr.Name(), err)
			}
		}
	}
}

// The blob is what its description says: other code, which derives the subkey
// and takes the nonce itself, opens it, and what that seals opens here. D-19
func TestAEADFormat(t *testing.T) {
	t.Parallel()
	for _, tr := range tracksOf(alg.KindAEAD) {
		a := newArena(t)
		key := make([]byte, 32)
		rand.Read(key)
		k := newPair(t, a, tr, fill(t, a, key))
		blob, err := tr.SealWith(k.expanded, []byte("aad"), []byte("data key"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := openAEADByHand(t, tr.Name(), key, []byte("aad"), blob); err != nil || string(got) != "data key" {
			t.Errorf("%s: %q, %v", tr.Name(), got, err)
		}
		head := make([]byte, 28)
		rand.Read(head)
		byHand := aeadByHand(t, tr.Name(), key, head[:16]).Seal(head, head[16:28], []byte("data key"), []byte("aad"))
		if got, err := k.openWith(t, []byte("aad"), byHand); err != nil || string(got) != "data key" {
			t.Errorf("%s: %q, %v", tr.Name(), got, err)
		}
	}
}

// Published vectors at the cipher itself: of AES-256-GCM those of NIST's CAVP
// and of the GCM submission, of ChaCha20-Poly1305 RFC 8439 §2.8.2. R-252
func TestAEADVectors(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ name, key, nonce, aad, plaintext, sealed string }{
		{"aes-256-gcm", "b52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4", "516c33929df5a3284ff463d7", "", "", "bdc1ac884d332457a1d2664f168c76f0"},
		{"aes-256-gcm", "5394e890d37ba55ec9d5f327f15680f6a63ef5279c79331643ad0af6d2623525", "3c819d9a9bed087615030b65", "", "", "d9b260d4bc4630733ffb642f5ce45726"},
		{"aes-256-gcm", "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "54cc7dc2c37ec006bcc6d1da", "", "007c5e5b3e59df24a7c355584fc1518d", "d50b9e252b70945d4240d351677eb10f937cdaef6f2822b6a3191654ba41b197"},
		{"aes-256-gcm", "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2", "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39", "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"},
		{"chacha20-poly1305", "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "070000004041424344454647", "50515253c0c1c2c3c4c5c6c7", "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a204966204920636f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73637265656e20776f756c642062652069742e", "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"},
	} {
		c, err := alg.NewCipher(track(t, v.name), unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		sealed := append(unhex(t, v.nonce), unhex(t, v.sealed)...)
		got, err := c.Open(nil, nil, sealed, unhex(t, v.aad))
		if err != nil || !bytes.Equal(got, unhex(t, v.plaintext)) {
			t.Errorf("%s, nonce %s: %x, %v", v.name, v.nonce, got, err)
		}
		sealed[len(sealed)-1] ^= 1
		if _, err := c.Open(nil, nil, sealed, unhex(t, v.aad)); err == nil {
			t.Errorf("%s, nonce %s: a changed tag opens", v.name, v.nonce)
		}
	}
}

// No pair of subkey and nonce is used twice with one key: not by many callers
// at once, nor after a restart, nor by a copy of the store that goes on by
// itself. R-415, D-19
func TestNoNonceReuse(t *testing.T) {
	t.Parallel()
	const each = 300
	for _, tr := range tracksOf(alg.KindAEAD) {
		var detector alg.ReuseDetector
		w := detector.Watch(tr)
		key := make([]byte, 32)
		rand.Read(key)
		var live []keyPair
		for range 4 { // the same key, in arenas of its own: started again, or a copy
			a := newArena(t)
			live = append(live, newPair(t, a, w, fill(t, a, key)))
		}
		var callers sync.WaitGroup
		salts := make([]map[string]bool, 2*len(live))
		for i := range salts {
			salts[i] = map[string]bool{}
			callers.Go(func() {
				for range each {
					blob, err := w.SealWith(live[i%len(live)].expanded, nil, []byte("the same data key"))
					if err != nil {
						t.Error(err)
						return
					}
					salts[i][string(blob[:16])] = true
				}
			})
		}
		callers.Wait()
		all := map[string]bool{}
		for _, s := range salts {
			for salt := range s {
				all[salt] = true
			}
		}
		if want := each * len(salts); detector.Reused != 0 || detector.Sealed != want || len(detector.SubkeysSeen) != want || len(all) != want {
			t.Errorf("%s: %d sealed, %d reused, %d subkeys, %d salts", tr.Name(), detector.Sealed, detector.Reused, len(detector.SubkeysSeen), len(all))
		}
	}
}

// The detector sees what it is for: a machine that was set back as a whole, its
// random source included. It cannot run in parallel with others.
func TestReuseDetector(t *testing.T) {
	key := make([]byte, 32)
	rand.Read(key)
	for _, tr := range tracksOf(alg.KindAEAD) {
		var detector alg.ReuseDetector
		w := detector.Watch(tr)
		for range 2 {
			cryptotest.SetGlobalRandom(t, 1)
			a := newArena(t)
			k := newPair(t, a, w, fill(t, a, key))
			for range 3 {
				if _, err := w.SealWith(k.expanded, nil, []byte("data key")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if detector.Sealed != 6 || detector.Reused != 3 {
			t.Errorf("%s: %d of %d seen as reused, want 3 of 6", tr.Name(), detector.Reused, detector.Sealed)
		}
	}
}

// Two processes that begin alike, with the same key, seal differently: nothing
// that random bytes are drawn from is inherited or derived from what a clone
// has in common. R-415
func TestNoNonceReuseAcrossProcesses(t *testing.T) {
	const variable = "RON_KMS_TEST_SEAL"
	tr := track(t, "aes-256-gcm")
	a := newArena(t)
	k := newPair(t, a, tr, fill(t, a, make([]byte, 32)))
	seal := func() []byte {
		blob, err := tr.SealWith(k.expanded, nil, []byte("the same data key"))
		if err != nil {
			t.Fatal(err)
		}
		return blob
	}
	if os.Getenv(variable) != "" {
		os.Stdout.Write(seal()[:28])
		os.Exit(0)
	}
	self, err := os.Executable()
	if err != nil {
		skip.Skip(t, "no path of the test program: "+err.Error())
	}
	seen := map[string]bool{string(seal()[:28]): true}
	for range 2 {
		cmd := exec.Command(self, "-test.run=^TestNoNonceReuseAcrossProcesses$")
		cmd.Env = append(os.Environ(), variable+"=1")
		out, err := cmd.Output()
		if err != nil || len(out) != 28 {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		seen[string(out)] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d different of 3", len(seen))
	}
}

var fuzzAEAD = sync.OnceValues(func() (keyPair, error) {
	a, err := secret.NewArena(1 << 16)
	if err != nil {
		return keyPair{}, err
	}
	tr, _ := alg.LookupTrack("chacha20-poly1305")
	seed, err := a.New(tr.SeedSize())
	if err != nil {
		return keyPair{}, err
	}
	expanded, err := tr.Expand(a, seed)
	return keyPair{track: tr, expanded: expanded}, err
})

// Whatever is opened is either what that key sealed, or ErrOpen.
func FuzzOpenWith(f *testing.F) {
	k, err := fuzzAEAD()
	if err != nil {
		f.Fatal(err)
	}
	blob, err := k.track.SealWith(k.expanded, []byte("aad"), []byte("data key"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("aad"), blob)
	f.Add([]byte(nil), blob)
	f.Add([]byte("aad"), blob[:44])
	f.Fuzz(func(t *testing.T, aad, blob []byte) {
		got, err := k.openWith(t, aad, blob)
		if err != nil {
			if err != alg.ErrOpen {
				t.Error(err)
			}
			return
		}
		byHand, err := openAEADByHand(t, k.track.Name(), make([]byte, 32), aad, blob)
		if err != nil || !bytes.Equal(got, byHand) {
			t.Errorf("opens to %x, by hand to %x, %v", got, byHand, err)
		}
	})
}
