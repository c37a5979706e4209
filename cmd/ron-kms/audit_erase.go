package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/backends/file"
	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// withStore opens a store that no server has open, and closes it after do.
func withStore(ctx context.Context, cfg *config.Config, do func(*core.KMS) error) error {
	k, err := core.Open(ctx, cfg, core.Options{Passphrase: func() ([]byte, error) { return passphrase(cfg, false) }})
	if err != nil {
		return err
	}
	return errors.Join(do(k), k.Close())
}

func auditEraseCommand() *cobra.Command {
	var f serverFlags
	var tenant string
	var yes bool
	cmd := &cobra.Command{
		Use:   "erase",
		Short: "Destroy a tenant's audit key, and with it what its records say of people",
		Long: `Destroys the key that the sealed actors and details of a tenant's records are
encrypted with (KMS_AUDIT_PERSONAL=sealed). Nobody can open them again. The
records stay, with everything else that they say, and so do all proofs; that it
was done is on record. What was recorded in clear is not touched.

It cannot be undone. A copy of the store from before, such as a backup, still
has the key: delete those too. See docs/runbooks/privacy.md.

The store must not be open in a server.`,
		Example: "  ron-kms audit erase --dir ./store --tenant acme --yes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tenant == "" {
				return errors.New("whose? give --tenant")
			}
			if !yes {
				return fmt.Errorf("nothing was done: this destroys the audit key of %s for good; say --yes to do it", tenant)
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			err = withStore(cmd.Context(), cfg, func(k *core.KMS) error { return k.EraseTenant(cmd.Context(), tenant) })
			var known *api.Error
			again := errors.As(err, &known) && known.Code == api.CodeNotFound // erased before, and perhaps cut off behind it
			if err != nil && !again {
				return err
			}
			// The key is gone from the records; now from the free pages of the file too.
			if err := file.Compact(cfg.Dir); err != nil {
				return fmt.Errorf("the key is destroyed, but keys.db could not be written anew, and may hold it in free pages: %w", err)
			}
			if again {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "erased: the audit key of %s\nnote: backups from before still hold it\n", tenant)
			return nil
		},
	}
	f.addStore(cmd)
	cmd.Flags().StringVar(&tenant, "tenant", "", "whose key")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func auditRevealCommand() *cobra.Command {
	var f serverFlags
	var tenant string
	cmd := &cobra.Command{
		Use:   "reveal INDEX",
		Short: "Show a record with its sealed actor and detail",
		Long: `Opens the sealed field of one record of a tenant and prints the record as JSON.
That it was revealed is on record too. The store must not be open in a server.`,
		Example: "  ron-kms audit reveal --dir ./store --tenant acme 4711",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return fmt.Errorf("INDEX is a record's number, not %q", args[0])
			}
			if tenant == "" {
				return errors.New("whose record? give --tenant")
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			return withStore(cmd.Context(), cfg, func(k *core.KMS) error {
				r, err := k.Reveal(cmd.Context(), tenant, index)
				if err != nil {
					return err
				}
				shown := struct {
					Index  uint64 `json:"index"`
					Detail string `json:"detail_text,omitempty"`
					Record any    `json:"record"`
				}{index, string(r.Detail), r}
				b, err := json.Marshal(shown, jsontext.WithIndent("  "))
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
				return err
			})
		},
	}
	f.addStore(cmd)
	cmd.Flags().StringVar(&tenant, "tenant", "", "the record's tenant")
	return cmd
}
