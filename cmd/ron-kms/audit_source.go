package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/witness"
	"github.com/rustyonions/ron-kms/core/api"
)

// logFlags say which log is read, where, and whose it must be.
type logFlags struct {
	dir, export, key        string
	endpoint, tokenFile, ca string
}

const logFlagsHelp = `
The log is read where it lies (--dir, a store's folder or the log's; a server
may write it meanwhile, and no passphrase is needed), from an export
(--export), or from a server (--endpoint, with a token of scope kms:audit).

Give --key as init printed it. Without it the key is taken from the log itself,
which shows that the log is consistent but not whose it is.`

func (f *logFlags) add(cmd *cobra.Command, exports bool) {
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the store or of its log (KMS_DIR)")
	if exports {
		cmd.Flags().StringVar(&f.export, "export", "", "folder of an export")
	}
	cmd.Flags().StringVar(&f.key, "key", "", "verifier keys, from elsewhere than the log")
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "server: http://host:port, https://host:port or unix:///path (KMS_ENDPOINT)")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with the capability token (KMS_TOKEN_FILE, or KMS_TOKEN)")
	cmd.Flags().StringVar(&f.ca, "ca", "", "PEM file of the authority that signed the server's certificate (KMS_CA)")
	cmd.MarkFlagsMutuallyExclusive("dir", "endpoint")
	if exports {
		cmd.MarkFlagsMutuallyExclusive("dir", "export", "endpoint")
	}
}

// A logSource is a log that the flags name.
type logSource struct {
	*logFlags
	path   string  // of a log or an export
	server *remote // nil: path
	keys   *notekey.Set
	own    bool // the keys were taken from the log
}

// open finds the log and the keys. Nothing is read of the log yet.
func (f *logFlags) open(ctx context.Context) (*logSource, error) {
	s := &logSource{logFlags: f}
	endpoint := f.endpoint
	if endpoint == "" && f.dir == "" && f.export == "" && os.Getenv("KMS_DIR") == "" {
		endpoint = os.Getenv("KMS_ENDPOINT")
	}
	var err error
	switch {
	case endpoint != "":
		token, err := clientToken(f.tokenFile)
		if err != nil {
			return nil, err
		}
		if f.ca == "" {
			f.ca = os.Getenv("KMS_CA")
		}
		c, err := dial(endpoint, token, f.ca)
		if err != nil {
			return nil, err
		}
		s.server = c.(*remote)
	case f.export != "":
		s.path = f.export
	default:
		if s.path, err = logDir(f.dir); err != nil {
			return nil, errors.New("which log? give --dir, --endpoint or --export (or set KMS_DIR or KMS_ENDPOINT)")
		}
	}
	return s, s.findKeys(ctx)
}

// findKeys takes the keys from the flag, or from the log itself.
func (s *logSource) findKeys(ctx context.Context) (err error) {
	if s.key != "" {
		if s.keys, err = notekey.ParseSet(s.key); err != nil {
			return fmt.Errorf("--key wants the verifier keys as init printed them: %w", err)
		}
		return nil
	}
	s.own = true
	var text []byte
	switch {
	case s.server != nil:
		text, _, err = s.server.get(ctx, auditPath+"keys")
	case s.export != "":
		text, err = os.ReadFile(filepath.Join(s.export, "keys"))
	default:
		s.keys, err = audit.StoredKeys(s.path)
		return err
	}
	if err != nil {
		return fmt.Errorf("the keys of the log: %w (or give --key)", err)
	}
	s.keys, err = notekey.ParseSet(string(text))
	return err
}

// warn says so if nobody else vouches for the keys.
func (s *logSource) warn(w io.Writer) {
	if s.own {
		fmt.Fprintln(w, "note        the key was taken from the log; give --key to know whose log it is")
	}
}

// reader reads the log as it is now.
func (s *logSource) reader(ctx context.Context) (*audit.Reader, error) {
	switch {
	case s.server != nil:
		raw, _, err := s.server.get(ctx, auditPath+"checkpoint")
		if err != nil {
			return nil, err
		}
		return audit.NewReader(serverTiles{ctx, s.server}, raw, s.keys)
	case s.export != "":
		return audit.ReadExport(s.path, s.keys)
	}
	return audit.OpenReader(ctx, s.path, audit.VerifyOptions{Keys: s.keys})
}

// with runs fn with a reader of the log.
func (s *logSource) with(ctx context.Context, fn func(*audit.Reader) error) error {
	r, err := s.reader(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(r), r.Close())
}

// proof returns the verified proof of a record.
func (s *logSource) proof(ctx context.Context, index uint64, cosigned bool) (*audit.Proof, error) {
	if s.server == nil {
		return s.localProof(ctx, index, cosigned)
	}
	path := auditPath + "proof?format=tlog-proof&index=" + strconv.FormatUint(index, 10)
	if cosigned {
		path += "&cosigned=1"
	}
	text, _, err := s.server.get(ctx, path)
	if err != nil {
		return nil, err
	}
	p, err := audit.ParseTLogProof(text)
	if err != nil {
		return nil, fmt.Errorf("the server's answer: %w", err)
	}
	if p.Index != index {
		return nil, fmt.Errorf("the server proves record %d instead of %d", p.Index, index)
	}
	return p, s.check(p)
}

func (s *logSource) localProof(ctx context.Context, index uint64, cosigned bool) (p *audit.Proof, err error) {
	err = s.with(ctx, func(r *audit.Reader) error {
		if cosigned {
			if r, err = r.Cosigned(); err != nil {
				return err
			}
		}
		if p, err = r.Prove(index); errors.Is(err, audit.ErrBeyond) {
			return fmt.Errorf("the checkpoint covers %d records, 0 to %d: %w", r.Signed(), r.Signed()-1, err)
		}
		return err
	})
	return p, err
}

// check verifies a proof. What is wrong with it is a verdict.
func (s *logSource) check(p *audit.Proof) error {
	if _, _, _, err := p.Verify(s.keys); err != nil {
		return &audit.IntegrityError{Verdict: audit.VerdictExport, Segment: -1, Reason: err.Error()}
	}
	return nil
}

// auditPath is where a server shows its log.
const auditPath = "/v1/kms/audit/"

// serverTiles are the tiles and bundles of a server's log.
type serverTiles struct {
	ctx    context.Context // of the command: a source has no context of its own
	server *remote
}

func (t serverTiles) ReadTile(name string) ([]byte, error) {
	b, _, err := t.server.get(t.ctx, auditPath+name)
	return b, err
}

// get fetches what is not a verb's answer. The error for what the server does not have is fs.ErrNotExist.
func (r *remote) get(ctx context.Context, path string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+path, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	answer, err := r.http.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("the server cannot be reached: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxResponse))
	if err != nil {
		return nil, nil, fmt.Errorf("the server's answer was cut off: %w", err)
	}
	if answer.StatusCode == http.StatusOK {
		return data, answer.Header, nil
	}
	var e api.Envelope
	if json.Unmarshal(data, &e) != nil || e.Error.Code == "" {
		err = fmt.Errorf("the server answered %s, not as a ron-kms does", answer.Status)
	} else {
		err = &serverError{e.Error}
	}
	if answer.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	}
	return nil, nil, err
}

// evidence is what an auditor brings along.
type evidence struct {
	against, witnesses []string
}

func (e *evidence) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&e.against, "against", nil, "file with an older checkpoint, which the log must continue (may be repeated)")
	cmd.Flags().StringArrayVar(&e.witnesses, "witness", nil, "verifier key of a witness that must have cosigned (may be repeated)")
}

func (e *evidence) notes() (notes [][]byte, err error) {
	for _, name := range e.against {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--against: %w", err)
		}
		notes = append(notes, b)
	}
	return notes, nil
}

func (e *evidence) verifiers() (vs []note.Verifier, err error) {
	for _, vkey := range e.witnesses {
		v, err := witness.NewVerifier(strings.TrimSpace(vkey))
		if err != nil {
			return nil, fmt.Errorf("--witness wants the verifier key that `ron-kms witness init` printed: %w", err)
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// readProof reads a tlog-proof, and its record from elsewhere if the proof does not bear it.
func readProof(name, recordName string) (*audit.Proof, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p, err := audit.ParseTLogProof(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if recordName == "" {
		if len(p.Record) == 0 {
			return nil, fmt.Errorf("%s does not bear its record: give --record", name)
		}
		return p, nil
	}
	rec, err := os.ReadFile(recordName)
	if err != nil {
		return nil, err
	}
	if len(p.Record) > 0 && !bytes.Equal(p.Record, rec) {
		return nil, fmt.Errorf("%s is not the record that %s bears", recordName, name)
	}
	p.Record = rec
	return p, nil
}
