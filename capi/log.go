package main

import (
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/core/api"
)

const (
	logQueue     = 1024        // lines waiting to be written
	logCloseTime = time.Second // how long closing waits for them
)

// A logSink writes log lines to a descriptor of the host. A host that does not
// read its pipe must not stop the KMS, so lines are queued, and dropped and
// counted when the queue is full.
type logSink struct {
	*slog.Logger
	lines   chan []byte
	dropped atomic.Uint64
	stop    chan struct{}
	done    chan struct{}
}

// newLogSink duplicates fd, above the standard descriptors; 0 or less discards
// all lines.
func newLogSink(fd int) (*logSink, error) {
	if fd <= 0 {
		return &logSink{Logger: slog.New(slog.DiscardHandler)}, nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, api.WrapError(api.ReasonMalformed, "log_fd is not an open file descriptor", err)
	}
	return startLogSink(os.NewFile(uintptr(own), "log_fd")), nil
}

func startLogSink(f *os.File) *logSink {
	s := &logSink{lines: make(chan []byte, logQueue), stop: make(chan struct{}), done: make(chan struct{})}
	s.Logger = slog.New(slog.NewJSONHandler(s, nil))
	go s.run(f)
	return s
}

// Write implements io.Writer for the handler; it never waits.
func (s *logSink) Write(line []byte) (int, error) {
	select {
	case s.lines <- append([]byte(nil), line...):
	default:
		s.dropped.Add(1)
	}
	return len(line), nil
}

func (s *logSink) run(f *os.File) {
	defer close(s.done)
	defer f.Close()
	for {
		select {
		case line := <-s.lines:
			s.put(f, line)
		case <-s.stop:
			for {
				select {
				case line := <-s.lines:
					s.put(f, line)
				default:
					return
				}
			}
		}
	}
}

// put writes one line. There is nowhere to report that logging failed; the
// line counts as dropped, and the count is written if writing works again.
func (s *logSink) put(f *os.File, line []byte) {
	if n := s.dropped.Swap(0); n > 0 {
		if _, err := fmt.Fprintf(f, "{\"level\":\"WARN\",\"msg\":\"log lines dropped\",\"count\":%d}\n", n); err != nil {
			s.dropped.Add(n)
		}
	}
	if _, err := f.Write(line); err != nil {
		s.dropped.Add(1)
	}
}

// close writes what is queued, but gives up on a host that does not read.
func (s *logSink) close() {
	if s.lines == nil {
		return
	}
	close(s.stop)
	select {
	case <-s.done:
	case <-time.After(logCloseTime):
	}
}
