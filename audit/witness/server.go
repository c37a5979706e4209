package witness

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

// A Server answers add-checkpoint of C2SP tlog-witness at the path /add-checkpoint. Strip a longer prefix before it
// (http.StripPrefix), and set time limits on the http.Server around it. It is safe for concurrent use.
type Server struct {
	dir    fsys.Dir
	unlock io.Closer
	key    *cosigner
	vkey   string
	logs   map[string]*knownLog // by origin; the map does not change
	report func(Event)
}

// Options are settings of a Server. The zero value is usable.
type Options struct {
	// Report, if set, is told of every request just before it is answered, from the goroutine that answers.
	Report func(Event)
}

// An Event is a request that was answered.
type Event struct {
	Origin string // empty if the request did not parse
	Size   uint64 // that the checkpoint claims
	Status int    // of HTTP
	Reason string // why not, empty if cosigned; has nothing of the request in it
}

// Open opens a witness that Init made and starts from what it last cosigned. It refuses a directory in which a file is
// missing or that another process has open (fsys.ErrBusy).
func Open(dir string, o Options) (s *Server, err error) {
	defer wrap(&err)
	d, unlock, err := openLocked(dir)
	if err != nil {
		return nil, err
	}
	if s, err = open(d, o); err != nil {
		return nil, errors.Join(err, unlock.Close(), d.Close())
	}
	s.unlock = unlock
	return s, nil
}

func open(d fsys.Dir, o Options) (*Server, error) {
	c, err := readConfig(d)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: d, vkey: c.VKey, logs: make(map[string]*knownLog), report: o.Report}
	if s.key, err = readKey(d, c.VKey); err != nil {
		return nil, err
	}
	for _, lc := range c.Logs {
		l, err := newLog(lc)
		if err != nil {
			return nil, err
		}
		if s.logs[l.origin] != nil {
			return nil, fmt.Errorf("%s has two logs %q", configFile, l.origin)
		}
		if err := l.load(d, s.key.verifier); err != nil {
			return nil, fmt.Errorf("state of log %q: %w", l.origin, err)
		}
		s.logs[l.origin] = l
	}
	return s, nil
}

// Close lets another process open the witness. Requests that are still being answered fail.
func (s *Server) Close() error {
	// The directory first: what is still being written then fails before anybody else can read it.
	return errors.Join(s.dir.Close(), s.unlock.Close())
}

// VerifierKey returns the key that checks the cosignatures (C2SP verifier key, type 4).
func (s *Server) VerifierKey() string { return s.vkey }

// A refusal is an answer other than a cosignature.
type refusal struct {
	status int
	reason string
	size   uint64 // with 409
}

func (r *refusal) Error() string { return r.reason }

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var e Event
	line, err := s.answer(w, r, &e)
	var no *refusal
	switch {
	case err == nil:
		e.Status = http.StatusOK
	case errors.As(err, &no):
		e.Status, e.Reason = no.status, no.reason
	default:
		e.Status, e.Reason = http.StatusInternalServerError, err.Error()
	}
	if s.report != nil {
		s.report(e)
	}
	switch e.Status {
	case http.StatusOK:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, line)
	case http.StatusConflict:
		w.Header().Set("Content-Type", sizeType)
		w.WriteHeader(e.Status)
		fmt.Fprintf(w, "%d\n", no.size)
	case http.StatusInternalServerError:
		http.Error(w, "the witness cannot keep its state", e.Status) // the reason may name files
	default:
		http.Error(w, e.Reason, e.Status)
	}
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, e *Event) (line string, err error) {
	if r.URL.Path != path {
		return "", &refusal{status: http.StatusNotFound, reason: "a witness has only POST " + path}
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return "", &refusal{status: http.StatusMethodNotAllowed, reason: "POST only"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if long := (*http.MaxBytesError)(nil); errors.As(err, &long) {
		return "", &refusal{status: http.StatusRequestEntityTooLarge, reason: "the request is too long"}
	} else if err != nil {
		return "", &refusal{status: http.StatusBadRequest, reason: "the request ended early"}
	}
	return s.add(body, e)
}

// add checks a request in the order of tlog-witness and returns the cosignature.
func (s *Server) add(body []byte, e *Event) (line string, err error) {
	req, err := parseRequest(body)
	if err != nil {
		return "", &refusal{status: http.StatusBadRequest, reason: err.Error()}
	}
	text, err := noteText(req.checkpoint)
	if err != nil {
		return "", &refusal{status: http.StatusBadRequest, reason: err.Error()}
	}
	h, err := parseHead(text)
	if err != nil {
		return "", &refusal{status: http.StatusBadRequest, reason: err.Error()}
	}
	l := s.logs[h.origin]
	if l == nil {
		return "", &refusal{status: http.StatusNotFound, reason: "unknown log"}
	}
	e.Origin, e.Size = h.origin, h.size
	n, err := l.open(req.checkpoint)
	if err != nil {
		return "", &refusal{status: http.StatusForbidden, reason: err.Error()}
	}
	if req.old > h.size {
		return "", &refusal{status: http.StatusBadRequest, reason: "the old size is larger than the checkpoint's"}
	}

	// Comparing with the last state and replacing it is one step: between the two no other request may pass.
	l.mu.Lock()
	defer l.mu.Unlock()
	if req.old != l.last.size {
		return "", &refusal{status: http.StatusConflict, reason: "the old size is not that of the last checkpoint cosigned", size: l.last.size}
	}
	if h.size == l.last.size && h.root != l.last.root {
		return "", s.fork(l, n)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, req.old, h.size, req.proof, l.last.root[:], h.root[:]); err != nil {
		return "", &refusal{status: http.StatusUnprocessableEntity, reason: "the consistency proof is wrong"}
	}
	c, err := s.key.cosign(n)
	if err != nil {
		return "", err
	}
	// Also if nothing but the time changed, so that what is released is never newer than what is durable. After a
	// failure the disk may have the new state or the old one, and memory keeps the old: right in both cases, because
	// the new one was not released, and the next that is will be durable first.
	if err := fsys.ReplaceFile(s.dir, l.state, c.note); err != nil {
		return "", err
	}
	l.last = c
	return c.line, nil
}

// fork refuses another tree of the size that was cosigned. The log signed both, which proves that it misbehaved to
// anybody: the first such checkpoint is kept. A wrong proof shows nothing, since anybody can send one with a
// checkpoint that he saw.
func (s *Server) fork(l *knownLog, n *note.Note) error {
	no := &refusal{status: http.StatusUnprocessableEntity, reason: "the log signed another tree of this size"}
	if l.forked {
		return no
	}
	b, err := note.Sign(n)
	if err == nil {
		err = fsys.ReplaceFile(s.dir, l.fork, b)
	}
	if err != nil {
		no.reason += ", and keeping the proof of it failed"
	}
	l.forked = err == nil
	return no
}
