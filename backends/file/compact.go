package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// compactTx bounds one transaction while records are copied, in bytes.
const compactTx = 1 << 20

// Compact writes keys.db anew with nothing but the records that count, and puts
// it in the place of the old file: bbolt keeps what was overwritten or erased in
// free pages until it needs the room. The store must not be open, here or
// elsewhere (ErrBusy). A crash leaves the old file or the new one. What the
// disk keeps of the old file's blocks is beyond this program.
func Compact(dir string) (err error) {
	if err := checkDir(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, keysFile)
	src, err := openDB(path)
	if err != nil {
		return err
	}
	// The old file stays locked until the new one has its name.
	defer func() { err = errors.Join(err, src.Close()) }()
	tmp := path + ".compact"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("file: compact: %w", err)
	}
	err = guard(func() error {
		dst, err := bbolt.Open(tmp, 0o600, &bbolt.Options{Timeout: lockWait})
		if err != nil {
			return err
		}
		return errors.Join(bbolt.Compact(dst, src, compactTx), dst.Sync(), dst.Close())
	})
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("file: compact: %w", err)
	}
	return SyncDir(dir)
}
