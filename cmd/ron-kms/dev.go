package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/config"
)

const devTenant = "dev"

func devCommand() *cobra.Command {
	var bind string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Serve an empty store in memory, to try things",
		Long: `Serves a store that lives in memory and forgets everything when it ends, and
prints a token for the tenant "dev" that lasts a day. Nothing is written to
disk. Not for keys that matter.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := config.Default()
			cfg.Backend, cfg.Bind = config.BackendInmem, bind
			k, err := core.Open(cmd.Context(), cfg, core.Options{})
			if err != nil {
				return err
			}
			token, err := mint.ForTenant(k.TokenKeys(), devTenant, capability.ScopeList(), time.Now().Add(24*time.Hour))
			if err != nil {
				k.Close()
				return err
			}
			return serve(cmd.Context(), k, slog.New(slog.DiscardHandler), func(addr string) {
				fmt.Fprintf(cmd.OutOrStdout(), `ron-kms dev: in memory; everything is forgotten when this ends (Ctrl-C)

export KMS_ENDPOINT=%s
export KMS_TOKEN=%s

Try, in another terminal after those two lines:
  KID=$(ron-kms keys create --purpose demo --alg ed25519+ml-dsa-65 --quiet)
  ron-kms sign --kid "$KID" /etc/hostname > signatures
  ron-kms verify signatures
`, addr, token)
			})
		},
	}
	cmd.Flags().StringVar(&bind, "bind", "127.0.0.1:0", "host:port or unix:///path to listen on; port 0 takes a free one")
	return cmd
}
