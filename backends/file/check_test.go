package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/rustyonions/ron-kms/backends"
)

// sample makes a keys.db with some of everything: free pages, branches, and
// records over several pages.
func sample(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, []byte("p"), 10); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keysFile)
	db, err := openDB(path)
	if err != nil {
		t.Fatal(err)
	}
	b := &Backend{db: db}
	rev := uint64(0)
	for i := range 5 {
		var puts []backends.Put
		for j := range 6 {
			n := 40 + 57*j
			if j == 5 {
				n = 2500
			}
			puts = append(puts, backends.Put{
				Key: fmt.Sprintf("key/%d/%060d", i*7%5, j), Value: bytes.Repeat([]byte{byte(i), byte(j)}, n),
			})
		}
		if i > 2 {
			puts = append(puts, backends.Put{Key: fmt.Sprintf("key/%d/%060d", (i-2)*7%5, 5)})
		}
		if rev, err = b.Commit(context.Background(), rev, puts...); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// read opens a keys.db as the backend does and loads it.
func read(path string) (map[string]string, uint64, error) {
	db, err := openDB(path)
	if err != nil {
		return nil, 0, err
	}
	b := &Backend{db: db}
	all := make(map[string]string)
	rev, err := b.Load(context.Background(), func(k string, v []byte) error { all[k] = string(v); return nil })
	return all, rev, errors.Join(err, db.Close())
}

// differences counts records that are not the same in both.
func differences(a, b map[string]string) (n int) {
	for k, v := range a {
		if b[k] != v {
			n++
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			n++
		}
	}
	return n
}

// A changed byte anywhere in keys.db is either found at once, or lies where it
// changes nothing, or inside one record, which the engine authenticates; a
// damaged meta page falls back to the state before the last commit, as after
// a crash, which the engine finds by its log. Never a panic, and never a fault
// that ends the process..
func TestKeysFlips(t *testing.T) {
	t.Parallel()
	path := sample(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, rev, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	stride := 64
	if os.Getenv("RONKMS_SOAK") == "1" {
		stride = 1
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := 0
	try := func(at int, mask byte) {
		if _, err := f.WriteAt([]byte{good[at] ^ mask}, int64(at)); err != nil {
			t.Fatal(err)
		}
		got, gotRev, err := read(path)
		if _, err := f.WriteAt(good[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
		switch {
		case errors.Is(err, backends.ErrTampered):
			found++
		case err != nil:
			t.Errorf("byte %d ^ %#x: %v, want ErrTampered", at, mask, err)
		case at < 2*page && gotRev == rev-1:
		case gotRev != rev && !revisionAt(good, at):
			t.Errorf("byte %d ^ %#x: revision %d of %d", at, mask, gotRev, rev)
		case differences(want, got) > 2: // one of another name counts twice
			t.Errorf("byte %d ^ %#x: %d records changed", at, mask, differences(want, got))
		}
	}
	for at := 0; at < len(good); at += stride {
		try(at, 0xff)
	}
	if found < 5 {
		t.Errorf("only %d changes were found", found)
	}
	// The headers and element tables, where every bit means something.
	found = 0
	for p := range len(good) / page {
		for at := p * page; at < p*page+64; at++ {
			try(at, 1<<(at%3))
		}
	}
	if found < 100 {
		t.Errorf("only %d changes of headers were found", found)
	}
}

// revisionAt tells whether a byte is inside the stored revision number.
func revisionAt(file []byte, at int) bool {
	for from := 0; ; {
		i := bytes.Index(file[from:], keyRevision)
		if i < 0 {
			return false
		}
		from += i + len(keyRevision)
		if at >= from-len(keyRevision) && at < from+8 {
			return true
		}
	}
}

// A file cut anywhere is found.
func TestKeysCut(t *testing.T) {
	t.Parallel()
	path := sample(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	cuts := []int{0, 1, 79, 80, len(good) - 1}
	for p := os.Getpagesize(); p < len(good); p += os.Getpagesize() {
		cuts = append(cuts, p-1, p, p+1)
	}
	for _, n := range cuts {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := read(path)
		// bbolt grows its file ahead: what lies behind the last page is air.
		if err == nil && differences(want, got) == 0 {
			continue
		}
		if !errors.Is(err, backends.ErrTampered) {
			t.Errorf("cut to %d of %d bytes: %v, want ErrTampered", n, len(good), err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != int64(n) {
			t.Errorf("opening a file cut to %d bytes changed it", n)
		}
	}
}

// Whatever bbolt writes passes: the check must never refuse a healthy store,
// nor one that a crash left between the pages and the meta page.
func TestCheckAcceptsWhatBboltWrites(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 1))
		path := filepath.Join(t.TempDir(), keysFile)
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		for range 15 {
			err := db.Update(func(tx *bbolt.Tx) error {
				for range 1 + rng.IntN(3) {
					b, err := tx.CreateBucketIfNotExists(fmt.Appendf(nil, "bucket %d", rng.IntN(3)))
					if err != nil {
						return err
					}
					for range rng.IntN(60) {
						k := fmt.Appendf(nil, "%0*d", 1+rng.IntN(200), rng.IntN(400))
						if rng.IntN(3) == 0 {
							err = b.Delete(k)
						} else {
							err = b.Put(k, make([]byte, rng.IntN(20)*rng.IntN(700)))
						}
						if err != nil {
							return err
						}
					}
					if rng.IntN(12) == 0 {
						if err := tx.DeleteBucket(fmt.Appendf(nil, "bucket %d", rng.IntN(3))); err != nil && b == nil {
							return err
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			if err == nil {
				err = checkBolt(f, st.Size())
			}
			if err != nil {
				t.Fatalf("seed %d: a healthy file is refused: %v", seed, err)
			}
			// The newest meta page torn: the state before is whole too.
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m, err := newestMeta(f)
			if err != nil {
				t.Fatal(err)
			}
			data[int(m.txid%2)*int(m.pageSize)+pageHeader+50] ^= 1
			if err := checkBolt(bytes.NewReader(data), int64(len(data))); err != nil {
				t.Fatalf("seed %d: the state before the last commit is refused: %v", seed, err)
			}
			f.Close()
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
