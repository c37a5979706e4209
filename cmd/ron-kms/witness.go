package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/audit/witness"
)

const defaultWitnessListen = "127.0.0.1:9447"

func witnessCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "witness",
		Short: "Remember the logs of others, so that they cannot be rolled back",
		Long: `A witness cosigns the checkpoints of audit logs, and refuses one that is older
than, or does not continue, what it saw before. It speaks C2SP tlog-witness.

Run it on another host than the logs, by other people: it is worth what it does
not share with them. Its private key is a plain file in its folder. It is not a
custodian's key; it signs nothing but what it saw. Back up the key, but never
put the folder back to an earlier state: a witness that forgets is worse than
none. One that lost its state is to be replaced by a new one with a new key.`,
		Example: `  ron-kms witness init ./witness --name witness.example/w1
  ron-kms witness add-log ./witness "$(ron-kms audit key --dir ./store)"
  ron-kms witness serve ./witness
  ron-kms witness show ./witness`,
	}
	cmd.AddCommand(witnessInitCommand(), witnessAddLogCommand(), witnessServeCommand(), witnessShowCommand())
	return cmd
}

func witnessInitCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a witness and print its verifier key",
		Long: `Makes a witness, with a new Ed25519 key, in a folder that does not exist or is
empty. It prints the verifier key, which logs and those who check them need.`,
		Example: "  ron-kms witness init ./witness --name witness.example/w1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("give --name: %w", err)
				}
				name = host
			}
			vkey, err := witness.Init(args[0], name)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), vkey)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the key: a host name, or a URL without https:// (default the host's name)")
	return cmd
}

func witnessAddLogCommand() *cobra.Command {
	var origin string
	cmd := &cobra.Command{
		Use:   "add-log DIR VKEY...",
		Short: "Make a witness know a log",
		Long: `Makes the witness know a log by the verifier keys of its checkpoints: at least
one of Ed25519, and any of ML-DSA-44. A checkpoint must then have a signature of
each of these two kinds that the log has. For a log that the witness knows, the
keys are added, and what it has seen stays.

The server must be stopped meanwhile.`,
		Example: "  ron-kms witness add-log ./witness \"$(ron-kms audit key --dir ./store)\"",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return witness.AddLog(args[0], origin, args[1:])
		},
	}
	cmd.Flags().StringVar(&origin, "origin", "", "first line of the log's checkpoints (default the name of the first key)")
	return cmd
}

func witnessShowCommand() *cobra.Command {
	var notes bool
	cmd := &cobra.Command{
		Use:   "show DIR",
		Short: "Print what a witness last saw of each log",
		Long: `Prints the witness's verifier key, and of each log how many records the witness
last saw, when, and the root over them. It may run beside the server. "FORKED"
says that the log signed another tree of a size that the witness had cosigned;
the proof is in the folder, in a file whose name ends in .fork.`,
		Example: "  ron-kms witness show ./witness",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vkey, logs, err := witness.Read(args[0])
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "witness     %s\n", vkey)
			for _, l := range logs {
				fmt.Fprintf(w, "\nlog         %s\n", l.Origin)
				if l.Size == 0 {
					fmt.Fprintf(w, "records     none seen since %s\n", l.Time.UTC().Format(time.RFC3339))
				} else {
					fmt.Fprintf(w, "records     %d, seen %s\n", l.Size, l.Time.UTC().Format(time.RFC3339))
				}
				fmt.Fprintf(w, "root        %s\n", base64.StdEncoding.EncodeToString(l.Root[:]))
				if l.Forked {
					fmt.Fprintln(w, "FORKED      it signed another tree of a size that was cosigned")
				}
				if notes {
					fmt.Fprintf(w, "\n%s", l.Note)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&notes, "notes", false, "print the cosigned checkpoints too")
	return cmd
}

func witnessServeCommand() *cobra.Command {
	var listen, cert, key string
	cmd := &cobra.Command{
		Use:   "serve DIR",
		Short: "Serve a witness over HTTP",
		Long: `Serves POST /add-checkpoint (C2SP tlog-witness) until it gets SIGTERM or SIGINT.
Each answer is a JSON line on standard error.

Without a certificate it listens on loopback or a Unix socket only: a proxy with
TLS may stand before it.`,
		Example: `  ron-kms witness serve ./witness
  ron-kms witness serve ./witness --listen unix:///run/witness.sock
  ron-kms witness serve ./witness --listen :9447 --tls-cert cert.pem --tls-key key.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
			s, err := witness.Open(args[0], witness.Options{Report: func(e witness.Event) { logAnswer(log, e) }})
			if err != nil {
				return err
			}
			l, address, err := witnessListener(listen, cert, key)
			if err != nil {
				return errors.Join(err, s.Close())
			}
			log.Info("serving", "address", address, "witness", s.VerifierKey(), "version", version)
			return errors.Join(serveWitness(cmd.Context(), s, l, log), s.Close())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", defaultWitnessListen, "host:port or unix:///path to listen on")
	cmd.Flags().StringVar(&cert, "tls-cert", "", "PEM file of the server's certificate")
	cmd.Flags().StringVar(&key, "tls-key", "", "PEM file of the certificate's private key")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	return cmd
}

func logAnswer(log *slog.Logger, e witness.Event) {
	switch {
	case e.Status == http.StatusOK:
		log.Info("cosigned", "log", e.Origin, "size", e.Size)
	case e.Status >= http.StatusInternalServerError:
		log.Error("failed", "log", e.Origin, "size", e.Size, "reason", e.Reason)
	default:
		log.Warn("refused", "log", e.Origin, "size", e.Size, "status", e.Status, "reason", e.Reason)
	}
}

// serveWitness answers until ctx ends, and then finishes what it began.
func serveWitness(ctx context.Context, s *witness.Server, l net.Listener, log *slog.Logger) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("witness: %w", err)
	case <-ctx.Done():
	}
	log.Info("stopping: finishing what was accepted")
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := h.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("witness: %w", err), h.Close())
	}
	return nil
}

// witnessListener binds host:port or unix:///path. The address it got must be loopback unless there is a certificate.
func witnessListener(listen, cert, key string) (net.Listener, string, error) {
	if socket, ok := strings.CutPrefix(listen, "unix://"); ok {
		if cert != "" {
			return nil, "", errors.New("a Unix socket has no TLS")
		}
		if err := removeDeadSocket(socket); err != nil {
			return nil, "", err
		}
		l, err := net.Listen("unix", socket)
		return l, listen, err
	}
	var config *tls.Config
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, "", err
		}
		config = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, "", err
	}
	if config != nil {
		return tls.NewListener(l, config), "https://" + l.Addr().String(), nil
	}
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return nil, "", errors.Join(fmt.Errorf("%s is not loopback: give --tls-cert and --tls-key, or put a proxy with TLS before it", listen), l.Close())
	}
	return l, "http://" + l.Addr().String(), nil
}

// removeDeadSocket removes the socket of a server that is gone. Two servers of one witness cannot meet here: only one
// has its folder.
func removeDeadSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("another server listens on %s", path), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
