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
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/term"

	"github.com/rustyonions/ron-kms/audit"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check the audit log",
	}
	cmd.AddCommand(auditVerifyCommand(), auditKeyCommand())
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
			vkey, err := audit.StoredVerifierKey(log)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), vkey)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the store or of its log (KMS_DIR)")
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var dir, vkey string
	var expect []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the whole log and count its operations",
		Long: `Reads the log, recomputes its Merkle tree, checks every checkpoint's signature
and every key's sequence, and counts the operations. It needs no passphrase and
changes nothing; it may run while a server writes the log.

Give --key as init printed it. Without it the key is taken from the log itself,
which shows that the log is consistent but not whose it is.`,
		Example: "  ron-kms audit verify --dir ./store --key \"$(cat verifier-key)\"\n  ron-kms audit verify --dir ./store --expect sign=412",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logDir(dir)
			if err != nil {
				return err
			}
			own := vkey == ""
			if own {
				if vkey, err = audit.StoredVerifierKey(log); err != nil {
					return err
				}
			}
			verifier, err := note.NewVerifier(vkey)
			if err != nil {
				return errors.New("the key is not a verifier key such as init prints: name+hash+base64")
			}
			report, err := audit.Verify(cmd.Context(), log, audit.VerifyOptions{
				Verifier: verifier, Progress: progress(cmd.ErrOrStderr()),
			})
			if report != nil && (err == nil || report.Size > 0) {
				printReport(cmd.OutOrStdout(), report)
			}
			if err != nil {
				return err
			}
			if own {
				fmt.Fprintln(cmd.OutOrStdout(), "note        the key was taken from the log; give --key to know whose log it is")
			}
			if err := checkCounts(report, expect); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ok")
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the store or of its log (KMS_DIR)")
	cmd.Flags().StringVar(&vkey, "key", "", "verifier key, from elsewhere than the log")
	cmd.Flags().StringSliceVar(&expect, "expect", nil, "fail unless this many operations succeeded: sign=412,create=1")
	return cmd
}

// progress shows a line on a terminal while a long log is read.
func progress(w io.Writer) func(done, total uint64) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	var last time.Time
	return func(done, total uint64) {
		if now := time.Now(); now.Sub(last) > 200*time.Millisecond || done == total {
			last = now
			fmt.Fprintf(w, "\r%d of %d records", done, total)
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
