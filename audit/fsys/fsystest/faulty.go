package fsystest

import (
	"os"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// Faulty is a directory whose writes can be made to fail.
type Faulty struct {
	fsys.Dir
	// Fail, if it returns an error, fails a "write", "sync", "rename" or "create" of the named file, or the "syncdir" of all.
	Fail func(op, name string) error
}

// OpenFile opens a file whose writes ask Fail.
func (d Faulty) OpenFile(name string, flag int) (fsys.File, error) {
	if flag&os.O_CREATE != 0 {
		if err := d.Fail("create", name); err != nil {
			return nil, err
		}
	}
	f, err := d.Dir.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &faultyFile{f, name, d}, nil
}

// Rename renames a file.
func (d Faulty) Rename(from, to string) error {
	if err := d.Fail("rename", from); err != nil {
		return err
	}
	return d.Dir.Rename(from, to)
}

// SyncDir makes names durable.
func (d Faulty) SyncDir() error {
	if err := d.Fail("syncdir", ""); err != nil {
		return err
	}
	return d.Dir.SyncDir()
}

type faultyFile struct {
	fsys.File
	name string
	d    Faulty
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.Fail("write", f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Datasync() error {
	if err := f.d.Fail("sync", f.name); err != nil {
		return err
	}
	return f.File.Datasync()
}
