package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
)

func auditRecoverCommand() *cobra.Command {
	var f serverFlags
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Give up a log that was refused, and begin another",
		Long: `For a store whose log was refused, or that contradicts its log. Find out first
what happened: docs/runbooks/integrity.md. Without --yes it says what it found,
what is lost and what it would do, and changes nothing.

With --yes the refused log is kept under another name, and a new one is begun. It
has another origin and another verifier key, and says first what was given up,
who decided so and why: --reason. Every key of the store goes on, except that what the old
log says was destroyed is destroyed. The store must be open nowhere else.`,
		Example: "  ron-kms audit recover --dir ./store\n" +
			"  ron-kms audit recover --dir ./store --yes --reason \"disk failed on 3 May, ticket 4711; no sign of an intruder. J. Doe\"",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, cfg, err := f.offline()
			if err != nil {
				return err
			}
			r, err := core.Recover(cmd.Context(), cfg, o, core.RecoverOptions{Reason: reason, Accept: yes})
			if err != nil {
				return err
			}
			printRecovery(cmd.OutOrStdout(), r)
			return nil
		},
	}
	f.addStore(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "what you found out and decided, in one line, for the record")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

// printRecovery says what was found, and what was or would be done.
func printRecovery(w io.Writer, r *core.RecoverReport) {
	fmt.Fprintf(w, "verdict     %s\n", r.Verdict)
	fmt.Fprintf(w, "found       %s\n", r.Found)
	if r.Origin != "" {
		fmt.Fprintf(w, "log         %s, id %s\n", r.Origin, r.LogID)
	}
	fmt.Fprintf(w, "records     %d are right", r.Records)
	if r.Records > 0 {
		fmt.Fprintf(w, ", root %s", base64.StdEncoding.EncodeToString(r.Root[:]))
	}
	fmt.Fprintln(w)
	if r.Later > 0 {
		fmt.Fprintf(w, "            %d after them can be read by themselves\n", r.Later)
	}
	if r.Mirrored && !r.Done {
		fmt.Fprintln(w, "mirror      has what follows: start the server once with its settings, and the log may take it back")
	}
	if r.CheckpointSize > 0 {
		fmt.Fprintf(w, "signed      %d, by the checkpoint with sha256 %x\n", r.CheckpointSize, r.CheckpointHash)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Anchors)) {
		fmt.Fprintf(w, "anchor      %s knows of %d records\n", name, r.Anchors[name])
	}
	fmt.Fprintf(w, "keys        %d go on\n", r.Adopted)
	for _, list := range []struct {
		name string
		kids []string
		what string
	}{
		{"lost", r.Lost, "the log knows them, and the store does not have them"},
		{"destroyed", r.Destroyed, "the log says so, and the store has a private part: it is erased"},
		{"rotated", r.Rotated, "the log knows later versions, whose private part is lost: rotate them"},
		{"erased", r.Erased, "tenants whose audit key the log says was destroyed, and the store has: it is erased"},
		{"unproven", r.Unproven, "the store has a later change than the log tells of"},
	} {
		if len(list.kids) > 0 {
			fmt.Fprintf(w, "%-11s %d: %s\n", list.name, len(list.kids), list.what)
		}
		for _, kid := range list.kids {
			fmt.Fprintf(w, "            %s\n", kid)
		}
	}
	if !r.Done {
		fmt.Fprintf(w, "\nnothing was changed. With --yes and --reason the log is kept aside, and %s begins\n", r.NewOrigin)
		return
	}
	fmt.Fprintf(w, "\nnew log     %s\n", r.NewOrigin)
	fmt.Fprintf(w, "verifier key %s\n", r.VerifierKey)
	if r.Refused != "" {
		fmt.Fprintf(w, "kept        %s\n", r.Refused)
	}
	if r.MinIndex {
		fmt.Fprintln(w, "note        KMS_AUDIT_MIN_INDEX is of the old log: remove it, or the new log is refused")
	}
	fmt.Fprintln(w, "next        give the verifier key to auditors and witnesses, and start the server")
}
