package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/control"
)

const (
	defaultBind  = "127.0.0.1:9446"
	drainTimeout = 10 * time.Second
)

func serveCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve a store over HTTP",
		Long: `Opens a store, checks that its audit log is whole, and serves the REST API,
/healthz, /readyz, /metrics and /version until it gets SIGTERM or SIGINT.
If the check fails it still serves, but only verification; /readyz says why.

Logs are JSON lines on standard error.

Variables (flags come first): ` + strings.Join(config.Variables(), ", ") + `.
docs/spec/config.md explains each.`,
		Example: "  ron-kms serve --dir ./store --passphrase-file ./passphrase\n  KMS_DIR=./store KMS_BIND=unix:///run/ron-kms.sock ron-kms serve",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			if cfg.Bind == "" {
				cfg.Bind = defaultBind
			}
			log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
			k, err := core.Open(cmd.Context(), cfg, core.Options{
				Logger:     log,
				Passphrase: func() ([]byte, error) { return passphrase(cfg, false) },
			})
			if err != nil {
				return err
			}
			return serve(cmd.Context(), k, log, func(addr string) {
				ready := k.Ready()
				log.Info("serving", "address", addr, "mode", ready.Mode, "backend", ready.Backend,
					"ready", ready.Ready, "reason", ready.Reason, "version", version)
			})
		},
	}
	f.addStore(cmd)
	cmd.Flags().StringVar(&f.bind, "bind", "", "host:port or unix:///path to listen on (KMS_BIND; default "+defaultBind+")")
	return cmd
}

// serve runs the control plane until ctx ends, then drains and closes.
func serve(ctx context.Context, k *core.KMS, log *slog.Logger, started func(addr string)) error {
	s, err := control.New(k, control.Options{Logger: log, Build: buildInfo()})
	if err != nil {
		return errors.Join(err, k.Close())
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve() }()
	started(s.Addr())
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for serving := true; serving; {
		select {
		case err = <-failed:
			serving = false
		case <-hangup:
			if err := k.Reload(); err != nil {
				log.Error("reload", "cause", err.Error())
				continue
			}
			log.Info("read again", "what", "policy and limits")
		case <-ctx.Done():
			log.Info("stopping: finishing what was accepted")
			drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
			err = s.Shutdown(drain)
			cancel()
			serving = false
		}
	}
	if err := errors.Join(err, k.Close()); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func buildInfo() control.BuildInfo {
	b := control.BuildInfo{Version: version, Commit: commit}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.GoVersion = info.GoVersion
	}
	return b
}
