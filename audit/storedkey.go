package audit

import (
	"errors"
	"fmt"

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// StoredKeys reads the public keys that the log in dir names for itself: those it began with, as C2SP vkeys. It is a convenience: a log
// that somebody forged names the forger's keys, so compare them with what you have from elsewhere before believing what they verify.
func StoredKeys(dir string) (*notekey.Set, error) {
	chain, err := StoredChain(dir)
	if err != nil {
		return nil, err
	}
	return chain[0].Set, nil
}

// StoredChain reads all the public keys that the log in dir names for itself. What StoredKeys says holds for them too.
func StoredChain(dir string) (keys notekey.Chain, err error) {
	err = beginIn(dir, func(s *scanner) { keys = s.chain })
	return keys, err
}

// StoredID reads the random id of the log in dir.
func StoredID(dir string) (id [16]byte, err error) {
	err = beginIn(dir, func(s *scanner) { id = s.f.id })
	return id, err
}

// StoredOrigin reads what the log in dir calls itself.
func StoredOrigin(dir string) (origin string, err error) {
	err = beginIn(dir, func(s *scanner) { origin = s.f.origin })
	return origin, err
}

// beginIn lends what the log in dir says of itself to use.
func beginIn(dir string, use func(*scanner)) (err error) {
	st, err := fsys.Open(dir)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	s := &scanner{st: st}
	if err := s.begin(); err != nil {
		return err
	}
	use(s)
	return nil
}
