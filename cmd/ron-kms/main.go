// Ron-kms is the daemon and the operator's command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/config"
)

// Set by the linker; a plain `go build` leaves them so.
var (
	version = "0.1.0-dev"
	commit  = "unknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		report(err)
		os.Exit(exitCode(err))
	}
}

// exitCode is 3 for a verdict on an audit log, which scripts must not take for a disk or a network that failed, and 1 for
// all other errors.
func exitCode(err error) int {
	if e := (*audit.IntegrityError)(nil); errors.As(err, &e) {
		return 3
	}
	return 1
}

// report prints an error the way people need it: what happened, and what to do.
func report(err error) {
	fmt.Fprintln(os.Stderr, "ron-kms:", err)
	var e *api.Error
	if errors.As(err, &e) && e.Hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", e.Hint)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ron-kms",
		Short: "Key custody and signing, with hybrid post-quantum signatures and a verifiable audit log",
		Long: `ron-kms keeps private keys that never leave it, signs with them, and records
every operation in a log that anybody can check.

A first look, in memory only:     ron-kms dev
A store on disk:                  ron-kms init --dir ./store
                                  ron-kms serve --dir ./store
A token for a service:            ron-kms token mint --dir ./store --tenant acme --scope kms:sign

Servers are configured by KMS_* variables (see "ron-kms serve --help"); flags
come before variables. Commands that use keys talk to a running server
(KMS_ENDPOINT and KMS_TOKEN_FILE), or open a store themselves with --dir.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.AddCommand(initCommand(), serveCommand(), devCommand(), tokenCommand(), keysCommand(),
		signCommand(), verifyCommand(), digestCommand(), preimageCommand(), wrapCommand(), unwrapCommand(), rewrapCommand(),
		auditCommand(), witnessCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and how it was built",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			info, _ := debug.ReadBuildInfo()
			fmt.Fprintf(cmd.OutOrStdout(), "ron-kms %s (%s, %s)\n", version, commit, info.GoVersion)
		},
	}
}

// serverFlags are the settings that most often differ from run to run. The
// others are variables only.
type serverFlags struct {
	dir, passphraseFile, bind string
}

func (f *serverFlags) addStore(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the store (KMS_DIR)")
	cmd.Flags().StringVar(&f.passphraseFile, "passphrase-file", "", "file with the store's passphrase (KMS_PASSPHRASE_FILE); without it the terminal asks")
}

// config reads the environment and lays the flags over it.
func (f *serverFlags) config() (*config.Config, error) {
	environ := os.Environ()
	for name, value := range map[string]string{"KMS_DIR": f.dir, "KMS_PASSPHRASE_FILE": f.passphraseFile, "KMS_BIND": f.bind} {
		if value != "" {
			environ = append(environ, name+"="+value)
		}
	}
	cfg, err := config.FromEnviron(environ)
	if err != nil {
		return nil, api.NewError(api.ReasonConfig, err.Error())
	}
	return cfg, nil
}
