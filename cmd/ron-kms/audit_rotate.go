package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/config"
)

func auditRotateKeyCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "rotate-key",
		Short: "Replace the keys that sign the log's checkpoints",
		Long: `Makes new keys, Ed25519 and ML-DSA-44, lets the old and the new ones sign the
change, records it in the log, and forgets the private parts of the old ones. Who
has the old verifier key can go on using it: it verifies the whole log. Witnesses
must be told the new one.

The store must be in good order and open nowhere else.`,
		Example: "  ron-kms audit rotate-key --dir ./store",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, cfg, err := f.offline()
			if err != nil {
				return err
			}
			r, err := core.RotateAuditKey(cmd.Context(), cfg, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "audit log      %s\nold key        %s\nnew key        %s\n\nnext: ron-kms witness add-log FOLDER NEW-KEY, for each witness\n",
				r.Origin, r.Old, r.New)
			return nil
		},
	}
	f.addStore(cmd)
	return cmd
}

// offline is the configuration of a store that this process opens itself, and how.
func (f *serverFlags) offline() (core.Options, *config.Config, error) {
	cfg, err := f.config()
	if err != nil {
		return core.Options{}, nil, err
	}
	return core.Options{Passphrase: func() ([]byte, error) { return passphrase(cfg, false) }}, cfg, nil
}
