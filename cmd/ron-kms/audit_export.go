package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/audit"
)

func auditExportCommand() *cobra.Command {
	var f logFlags
	var size uint64
	cmd := &cobra.Command{
		Use:   "export OUT",
		Short: "Copy the log to where an auditor can verify it",
		Long: `Writes the signed records, the tree and the public keys to the folder OUT, as
C2SP tlog-tiles: a web server can give it out as it is, and the tools of others
read it. What is written has been verified. OUT appears when it is complete.

If OUT is an earlier export, it is brought up to date, and only if the log
continues it. An export that was broken off goes on where it was. With OUT -
a tar goes to standard output.

An export holds the records of all tenants: keep it as you keep the log.
` + logFlagsHelp,
		Example: `  ron-kms audit export --dir ./store ./audit-2026
  ron-kms audit export --endpoint https://kms:9446 --token-file auditor.token ./audit-2026
  ron-kms audit export --dir ./store - | ssh auditor 'cat > log.tar'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			o := audit.ExportOptions{Size: size, Progress: progress(cmd.ErrOrStderr(), "files")}
			return s.with(cmd.Context(), func(r *audit.Reader) error {
				s.warn(cmd.ErrOrStderr())
				if args[0] == "-" {
					return r.ExportTar(cmd.Context(), cmd.OutOrStdout(), o)
				}
				if err := r.Export(cmd.Context(), args[0], o); err != nil {
					return err
				}
				if size == 0 {
					size = r.Signed()
				}
				fmt.Fprintf(cmd.OutOrStdout(), "exported    %d records to %s\n", size, args[0])
				return nil
			})
		},
	}
	f.add(cmd, false)
	cmd.Flags().Uint64Var(&size, "size", 0, "records to export: those of an older checkpoint that the log still has")
	return cmd
}

func auditProveCommand() *cobra.Command {
	var f logFlags
	var out, record string
	var cosigned bool
	cmd := &cobra.Command{
		Use:   "prove INDEX",
		Short: "Write the proof that a record is in the log",
		Long: `Writes a C2SP tlog-proof: the record, the hashes that lead from it to the root,
and the checkpoint that signs the root. The file and the public keys are all
that somebody needs to verify it, with "audit verify --proof" or other tools.
` + logFlagsHelp,
		Example: `  ron-kms audit prove 4711 --dir ./store --out payment.tlog-proof
  ron-kms audit verify --proof payment.tlog-proof --key "$(cat verifier-key)"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := recordIndex(args[0])
			if err != nil {
				return err
			}
			s, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			p, err := s.proof(cmd.Context(), index, cosigned)
			if err != nil {
				return err
			}
			s.warn(cmd.ErrOrStderr())
			if record != "" {
				if err := os.WriteFile(record, p.Record, 0o600); err != nil {
					return err
				}
			}
			if out == "" || out == "-" {
				_, err := cmd.OutOrStdout().Write(p.TLogProof())
				return err
			}
			return os.WriteFile(out, p.TLogProof(), 0o600)
		},
	}
	f.add(cmd, true)
	cmd.Flags().StringVar(&out, "out", "", "file for the proof (default standard output)")
	cmd.Flags().StringVar(&record, "record", "", "file for the record alone, as it is hashed")
	cmd.Flags().BoolVar(&cosigned, "cosigned", false, "prove it under the latest checkpoint that witnesses cosigned")
	return cmd
}
