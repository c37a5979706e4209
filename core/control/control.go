// Package control is the HTTP control plane of ron-kms: it serves every verb
// of the engine as REST beside the process that holds the keys. It decides
// nothing itself; it turns requests into calls of core and answers into JSON,
// strictly. The endpoints are docs/spec/rest.md.
//
//	server, err := control.New(kms, control.Options{})
//	go server.Serve()
//	defer server.Shutdown(ctx)
package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/rustyonions/ron-kms/core"
)

// abiVersion is what /version says of the C ABI that this tree implements.
const abiVersion = "0.1"

// maxHeader bounds a request's line and header fields, in bytes; net/http
// allows itself 4 KiB more.
const maxHeader = 16 << 10

// Options are what a program tells its control plane.
type Options struct {
	// Logger takes one line a request at level debug, and faults at level
	// error. Nil discards.
	Logger *slog.Logger
	// Build is what /version answers.
	Build BuildInfo
}

// BuildInfo names the program that runs.
type BuildInfo struct {
	Version   string // for example "0.1.0"
	Commit    string
	GoVersion string
}

// limits are the times that a connection may take.
type limits struct {
	header time.Duration // for the request line, the header and a TLS handshake
	read   time.Duration // for the whole request
	idle   time.Duration // between requests
}

var defaultLimits = limits{header: 5 * time.Second, read: 10 * time.Second, idle: 60 * time.Second}

// A Server listens where the KMS's configuration says: the API at Bind, and
// the metrics at MetricsBind if that is set, else beside the API.
type Server struct {
	addr  string
	faces []*face
}

// face is one listener and the HTTP server on it.
type face struct {
	*listener
	http *http.Server
}

// New binds the listeners; connections wait until [Server.Serve] runs. It
// refuses an address that is not loopback without TLS, and a Unix socket on
// which another server answers.
func New(k *core.KMS, o Options) (*Server, error) { return newServer(k, o, defaultLimits) }

func newServer(k *core.KMS, o Options, lim limits) (*Server, error) {
	cfg := k.Config()
	tlsConfig, err := loadTLS(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("control: tls: %w", err)
	}
	h := newHandler(k, o)
	api, err := listen(cfg.Bind, tlsConfig, h)
	if err != nil {
		return nil, fmt.Errorf("control: listen: %w", err)
	}
	s := &Server{addr: api.url()}
	if cfg.MetricsBind == "" {
		s.add(api, h, lim)
		return s, nil
	}
	s.add(api, h.narrowed(func(e endpoint) bool { return e.pattern != pathMetrics }), lim)
	metrics, err := listen(cfg.MetricsBind, nil, h)
	if err != nil {
		return nil, fmt.Errorf("control: listen for metrics: %w", errors.Join(err, api.Close()))
	}
	s.add(metrics, h.narrowed(func(e endpoint) bool { return e.pattern == pathMetrics }), lim)
	return s, nil
}

func (s *Server) add(l *listener, h *handler, lim limits) {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // the only one whose every refusal the listener can put in an envelope
	s.faces = append(s.faces, &face{l, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: lim.header,
		ReadTimeout:       lim.read,
		// From the end of the header: reading, working, and sending.
		WriteTimeout:                 2*lim.read + time.Duration(h.k.Config().OpTimeout),
		IdleTimeout:                  lim.idle,
		ConnContext:                  withConnection,
		MaxHeaderBytes:               maxHeader,
		Protocols:                    &protocols,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(serverLog{h.log}, "", 0),
	}})
}

// Handler serves the API without a listener: for tests, and for a program that
// has a server of its own. Time limits, TLS and the size of the header are
// then that server's to set.
func Handler(k *core.KMS, o Options) http.Handler { return newHandler(k, o) }

// Addr is where the API listens: "http://127.0.0.1:9446", "https://…" or
// "unix:///path". A port 0 of the configuration is replaced by the real one.
func (s *Server) Addr() string { return s.addr }

// Serve answers requests until [Server.Shutdown], then returns nil, or until a
// listener fails, then returns why. It is called once.
func (s *Server) Serve() error {
	ended := make(chan error, len(s.faces))
	for _, f := range s.faces {
		go func() { ended <- f.http.Serve(f.listener) }()
	}
	var first error
	for range s.faces {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && first == nil {
			first = fmt.Errorf("control: serve: %w", err)
			for _, f := range s.faces {
				f.http.Close() // the other listener must not live on alone
			}
		}
	}
	return first
}

// Shutdown stops listening, lets requests that were accepted finish, and
// returns. When ctx ends first it cuts what is left and returns its error. The
// KMS stays open. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	ended := make(chan error, len(s.faces))
	for _, f := range s.faces {
		go func() {
			err := f.http.Shutdown(ctx)
			if err != nil {
				err = errors.Join(err, f.http.Close())
			}
			f.Close() // no-op if Serve has run
			ended <- err
		}()
	}
	var errs []error
	for range s.faces {
		errs = append(errs, <-ended)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("control: shutdown: %w", err)
	}
	return nil
}

// serverLog passes on what an operator can act on and no text that a client
// has a say in.
type serverLog struct{ log *slog.Logger }

// Write implements [io.Writer] for the log of net/http.
func (l serverLog) Write(line []byte) (int, error) {
	if bytes.HasPrefix(line, []byte("http: Accept error")) {
		l.log.Error("control: accept", "cause", string(bytes.TrimSpace(line)))
	}
	return len(line), nil
}
