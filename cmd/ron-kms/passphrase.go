package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/secret"
)

// passphrase gets the store's passphrase from its file, or asks on the
// terminal; it is never taken from an argument or a variable, which other
// processes can read. The caller wipes it.
func passphrase(cfg *config.Config, confirm bool) ([]byte, error) {
	if cfg.PassphraseFile != "" {
		return cfg.ReadPassphrase()
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil, errors.New("no passphrase: give --passphrase-file, set KMS_PASSPHRASE_FILE, or run on a terminal")
	}
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(os.Stderr, prompt)
		p, err := term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
		return p, err
	}
	p, err := ask("Passphrase: ")
	if err != nil {
		return nil, err
	}
	if len(p) == 0 {
		return nil, errors.New("the passphrase is empty")
	}
	if !confirm {
		return p, nil
	}
	again, err := ask("Again: ")
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(again)
	if !bytes.Equal(p, again) {
		secret.Wipe(p)
		return nil, errors.New("the passphrases differ; nothing was made")
	}
	return p, nil
}
