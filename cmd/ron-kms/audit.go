package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rustyonions/ron-kms/audit"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check, read and export the audit log",
		Long: `Only erase, prune, recover and rotate-key change anything; the others read. Exit
status: 0 for success, 3 for a verdict (the log, export or proof is not what the
keys signed), 1 for any other error.`,
	}
	cmd.AddCommand(auditExportCommand(), auditProveCommand(), auditShowCommand(), auditTailCommand())
	cmd.AddCommand(auditVerifyCommand(), auditKeyCommand(), auditKeysCommand())
	cmd.AddCommand(auditRecoverCommand(), auditRotateKeyCommand())
	cmd.AddCommand(auditEraseCommand(), auditRevealCommand(), auditPruneCommand())
	return cmd
}

// logDir finds the log in a store's folder, or takes the folder as a log.
func logDir(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("KMS_DIR")
	}
	if dir == "" {
		return "", errors.New("which log? give --dir, the store's folder or the log's")
	}
	if _, err := os.Stat(filepath.Join(dir, "audit")); err == nil {
		return filepath.Join(dir, "audit"), nil
	}
	return dir, nil
}

func auditKeyCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the verifier key that a log names for itself",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logDir(dir)
			if err != nil {
				return err
			}
			keys, err := audit.StoredKeys(log)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), keys)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the store or of its log (KMS_DIR)")
	return cmd
}

func auditKeysCommand() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Print the verifier keys that a log has had, and from which size on each counts",
		Long: `Prints each set of verifier keys on a line, after the smallest number of records
that it signs for. Each set but the first was signed by the one before.
` + logFlagsHelp,
		Example: "  ron-kms audit keys --dir ./store",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			return s.with(cmd.Context(), func(r *audit.Reader) error {
				s.warn(cmd.ErrOrStderr())
				for _, span := range r.Keys() {
					fmt.Fprintf(cmd.OutOrStdout(), "%d %s\n", span.From, span.Set)
				}
				return nil
			})
		},
	}
	f.add(cmd, true)
	return cmd
}

// auditCheck is what `audit verify` is to do.
type auditCheck struct {
	logFlags
	evidence
	proof, record string
	expect        []string
}

func auditVerifyCommand() *cobra.Command {
	var c auditCheck
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check a whole log, an export of it, or the proof of one record",
		Long: `Reads the log or the export, recomputes its Merkle tree, checks every
checkpoint's signatures and every key's sequence, and counts the operations. It
needs no passphrase and changes nothing; it may run while a server writes the
log. For an export or a proof it needs nothing else than --key.

Give --key as init printed it. Without it the key is taken from the log itself,
which shows that the log is consistent but not whose it is. Give --against with
a checkpoint that you kept, to know that nothing was taken back since.

Exit status: 0 if all is well, 3 for a verdict, 1 for any other error.`,
		Example: `  ron-kms audit verify --dir ./store --key "$(cat verifier-key)"
  ron-kms audit verify --dir ./store --expect sign=412
  ron-kms audit verify --export ./audit-2026 --key "$(cat verifier-key)" --against kept-checkpoint
  ron-kms audit verify --export ./audit-2026 --key "$(cat verifier-key)" --witness "$(cat witness-key)"
  ron-kms audit verify --proof payment.tlog-proof --key "$(cat verifier-key)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.proof != "" {
				return c.verifyProof(cmd)
			}
			return c.verify(cmd)
		},
	}
	cmd.Flags().StringVar(&c.dir, "dir", "", "folder of the store or of its log (KMS_DIR)")
	cmd.Flags().StringVar(&c.export, "export", "", "folder of an export")
	cmd.Flags().StringVar(&c.key, "key", "", "verifier keys, from elsewhere than the log")
	cmd.Flags().StringVar(&c.proof, "proof", "", "file with a tlog-proof")
	cmd.Flags().StringVar(&c.record, "record", "", "file with the record of the proof, if that does not bear it")
	cmd.Flags().StringSliceVar(&c.expect, "expect", nil, "fail unless this many operations succeeded: sign=412,create=1")
	c.evidence.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("dir", "export", "proof")
	cmd.MarkFlagsMutuallyExclusive("proof", "expect")
	cmd.MarkFlagsMutuallyExclusive("proof", "against")
	return cmd
}

// verify checks a log or an export.
func (c *auditCheck) verify(cmd *cobra.Command) error {
	s := &logSource{logFlags: &c.logFlags, path: c.export}
	var err error
	if c.export == "" {
		if s.path, err = logDir(c.dir); err != nil {
			return err
		}
	}
	if err := s.findKeys(cmd.Context()); err != nil {
		return err
	}
	o := audit.VerifyOptions{Keys: s.keys, Progress: progress(cmd.ErrOrStderr(), "records")}
	if o.Against, err = c.notes(); err != nil {
		return err
	}
	if o.Witnesses, err = c.verifiers(); err != nil {
		return err
	}
	verify := audit.Verify
	if c.export != "" {
		verify = audit.VerifyExport
	}
	report, err := verify(cmd.Context(), s.path, o)
	if report != nil && (err == nil || report.Size > 0) {
		printReport(cmd.OutOrStdout(), report)
	}
	if err != nil {
		return err
	}
	s.warn(cmd.OutOrStdout())
	if err := checkCounts(report, c.expect); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "ok")
	return nil
}

// verifyProof checks the proof of one record, and prints the record.
func (c *auditCheck) verifyProof(cmd *cobra.Command) error {
	if c.key == "" {
		return errors.New("a proof is worth what its key is: give --key, the verifier keys as init printed them")
	}
	s := &logSource{logFlags: &c.logFlags}
	if err := s.findKeys(cmd.Context()); err != nil {
		return err
	}
	witnesses, err := c.verifiers()
	if err != nil {
		return err
	}
	p, err := readProof(c.proof, c.record)
	if err != nil {
		return err
	}
	if err := s.check(p); err != nil {
		return err
	}
	for _, w := range witnesses {
		if !p.CosignedBy(w, s.keys) {
			return &audit.IntegrityError{Verdict: audit.VerdictExport, Segment: -1, Reason: "the checkpoint is not cosigned by " + w.Name()}
		}
	}
	if err := printProof(cmd.OutOrStdout(), p, s); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "ok")
	return nil
}

// progress shows a line on a terminal while a long log is read or written.
func progress(w io.Writer, unit string) func(done, total uint64) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	var last time.Time
	return func(done, total uint64) {
		if now := time.Now(); now.Sub(last) > 200*time.Millisecond || done == total {
			last = now
			fmt.Fprintf(w, "\r%d of %d %s", done, total, unit)
			if done == total {
				fmt.Fprint(w, "\r\033[K")
			}
		}
	}
}

func printReport(w io.Writer, r *audit.Report) {
	fmt.Fprintf(w, "log         %s\n", r.Origin)
	fmt.Fprintf(w, "records     %d, root %s\n", r.Size, base64.StdEncoding.EncodeToString(r.Root[:]))
	fmt.Fprintf(w, "signed      %d, at %s (%d checkpoints)\n", r.CheckpointSize, r.CheckpointTime.UTC().Format(time.RFC3339), r.Checkpoints)
	for _, name := range slices.Sorted(maps.Keys(r.Cosigned)) {
		fmt.Fprintf(w, "witnessed   %d, by %s\n", r.Cosigned[name], name)
	}
	if r.Unsigned > 0 {
		fmt.Fprintf(w, "unsigned    %d records after the last checkpoint: only as trustworthy as the disk\n", r.Unsigned)
	}
	for _, op := range slices.Sorted(maps.Keys(r.Ops)) {
		var counts []string
		for _, result := range slices.Sorted(maps.Keys(r.Ops[op])) {
			counts = append(counts, fmt.Sprintf("%s %d", result, r.Ops[op][result]))
		}
		fmt.Fprintf(w, "%-11s %s\n", op, strings.Join(counts, ", "))
	}
	if n := r.Kinds[audit.KindDenied]; n > 0 {
		fmt.Fprintf(w, "denied      %d\n", n)
	}
	fmt.Fprintf(w, "keys        %d\n", r.Keys)
	if r.Gaps > 0 {
		fmt.Fprintf(w, "lost        %d records of verify or read that the log could not take\n", r.Gaps)
	}
	if r.TornBytes > 0 {
		fmt.Fprintf(w, "torn        %d bytes of a write that was never acknowledged; the next open discards them\n", r.TornBytes)
	}
	if !r.Clean {
		fmt.Fprintln(w, "state       open or not closed cleanly")
	}
}

// checkCounts compares successful operations with what the caller expects.
func checkCounts(r *audit.Report, expect []string) error {
	for _, e := range expect {
		op, text, ok := strings.Cut(e, "=")
		want, err := strconv.ParseUint(text, 10, 64)
		if !ok || err != nil {
			return fmt.Errorf("--expect wants verb=number, not %q", e)
		}
		if got := r.Ops[op]["ok"]; got != want {
			return fmt.Errorf("the log has %d successful %s operations, not %d", got, op, want)
		}
	}
	return nil
}
