package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core"
)

func auditPruneCommand() *cobra.Command {
	var f serverFlags
	var before uint64
	var olderThan time.Duration
	var policy string
	var yes bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Give up old records under a stated policy",
		Long: fmt.Sprintf(`Removes the oldest records, in whole volumes of %d, and never the latest
volume. Their hashes stay: every other record can still be proven, and every
checkpoint still holds. What went, and by which policy, is on record for good.

It cannot be undone: export the log first (ron-kms audit export) if anybody may
ask for these records. Without --yes it only says what would go.

The store must not be open in a server.`, audit.VolumeRecords),
		Example: "  ron-kms audit prune --dir ./store --older-than 8760h --policy 'retention: one year'\n" +
			"  ron-kms audit prune --dir ./store --before 1000000 --policy 'ticket 17' --yes",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (before > 0) == (olderThan > 0) {
				return errors.New("which records? give either --before or --older-than")
			}
			if policy == "" {
				return errors.New("by which policy? give --policy; it stays in the log")
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return withStore(ctx, cfg, func(k *core.KMS) error {
				if olderThan > 0 {
					if before, err = k.AuditIndexAt(ctx, k.Now().Add(-olderThan)); err != nil {
						return err
					}
				}
				plan, err := k.PlanPrune(before)
				if err != nil {
					return err
				}
				printPlan(cmd.OutOrStdout(), plan, before)
				if plan.Records() == 0 || !yes {
					if plan.Records() > 0 {
						fmt.Fprintln(cmd.OutOrStdout(), "nothing was done; say --yes to do it")
					}
					return nil
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: what was not exported is gone after this")
				if plan, err = k.PruneAudit(ctx, before, policy); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "pruned: the log now begins with record %d\n", plan.To)
				return nil
			})
		},
	}
	f.addStore(cmd)
	cmd.Flags().Uint64Var(&before, "before", 0, "give up records before this index")
	cmd.Flags().DurationVar(&olderThan, "older-than", 0, "give up records older than this, such as 8760h")
	cmd.Flags().StringVar(&policy, "policy", "", "why, in at most 1024 bytes")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func printPlan(w io.Writer, p core.PrunePlan, before uint64) {
	if p.Records() == 0 {
		fmt.Fprintf(w, "nothing to prune: no whole volume of %d records lies before record %d (the log has %d, from %d on)\n",
			audit.VolumeRecords, before, p.Size, p.From)
		return
	}
	fmt.Fprintf(w, "%d records, %d to %d, of the %d that there are\n", p.Records(), p.From, p.To-1, p.Size-p.From)
}
