package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/control"
)

// drainTime is how long closing waits for HTTP requests that are under way.
const drainTime = 5 * time.Second

// A listener is the HTTP control plane of an open store.
type listener struct {
	server *control.Server
	done   chan error // the result of Serve
}

// listen starts the control plane if the configuration names an address, and
// returns nil if not.
func listen(k *core.KMS, log *slog.Logger) (*listener, error) {
	if k.Config().Bind == "" {
		return nil, nil
	}
	server, err := control.New(k, control.Options{
		Logger: log,
		Build:  control.BuildInfo{Version: version, GoVersion: runtime.Version()},
	})
	if err != nil {
		return nil, err
	}
	l := &listener{server: server, done: make(chan error, 1)}
	go func() {
		err := server.Serve()
		if err != nil {
			// ronkms_close returns this, but may be far away: the C interface
			// goes on without.
			log.Error("the HTTP control plane ended", "cause", err.Error())
		}
		l.done <- err
	}()
	return l, nil
}

func (l *listener) address() string { return l.server.Addr() }

// close stops listening and waits for requests under way.
func (l *listener) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := l.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("http: %w", err)
	}
	return <-l.done
}
