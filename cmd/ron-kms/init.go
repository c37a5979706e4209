package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/secret"
)

func initCommand() *cobra.Command {
	var f serverFlags
	var o core.InitOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new store",
		Long: `Makes a store in a folder that does not exist or is empty: the root key sealed
by a passphrase, the audit log and its signing key, and the first root key for
tokens. It is the only command that creates anything; all others refuse a
folder without a store.

Write down the verifier key that it prints, and give it to your auditors: with
it anybody can check the log without trusting this machine.

The passphrase cannot be recovered. Without it every key in the store is lost.`,
		Example: "  ron-kms init --dir ./store\n  ron-kms init --dir ./store --passphrase-file ./passphrase",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			p, err := passphrase(cfg, true)
			if err != nil {
				return err
			}
			defer secret.Wipe(p)
			r, err := core.Init(cmd.Context(), cfg, p, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), `store          %s
store id       %s
audit log      %s
verifier key   %s
token root     %s

next: ron-kms serve --dir %[1]s
      ron-kms token mint --dir %[1]s --tenant NAME --scope kms:create,kms:sign,kms:verify
`, cfg.Dir, r.StoreID, r.Origin, r.VerifierKey, r.TokenRootID)
			return nil
		},
	}
	f.addStore(cmd)
	cmd.Flags().IntVar(&o.WorkFactor, "work-factor", 0, "log2 of scrypt's cost, 10 to 20 (default 18: about a second to open)")
	return cmd
}
