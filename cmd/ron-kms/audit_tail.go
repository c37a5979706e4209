package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/core/api"
)

// pollInterval is how often a followed log is looked at.
const pollInterval = time.Second

func recordIndex(text string) (uint64, error) {
	index, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not the index of a record: a number from 0 on", text)
	}
	return index, nil
}

func auditShowCommand() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:     "show INDEX",
		Short:   "Print one record, after proving that it is in the log",
		Long:    "Prints a record as JSON, with its leaf hash and the size of the checkpoint that\ncovers it.\n" + logFlagsHelp,
		Example: "  ron-kms audit show 4711 --dir ./store",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := recordIndex(args[0])
			if err != nil {
				return err
			}
			s, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			p, err := s.proof(cmd.Context(), index, false)
			if err != nil {
				return err
			}
			s.warn(cmd.ErrOrStderr())
			return printProof(cmd.OutOrStdout(), p, s)
		},
	}
	f.add(cmd, true)
	return cmd
}

// printProof prints the record of a proof, and what covers it.
func printProof(w io.Writer, p *audit.Proof, s *logSource) error {
	rec, size, _, err := p.Verify(s.keys)
	if err != nil {
		return err
	}
	text, err := rec.MarshalJSON()
	if err != nil {
		return err
	}
	leaf := p.LeafHash()
	b, err := json.Marshal(struct {
		Index    uint64         `json:"index"`
		LeafHash string         `json:"leaf_hash"`
		Signed   uint64         `json:"checkpoint_size"`
		Record   jsontext.Value `json:"record"`
	}{p.Index, hex.EncodeToString(leaf[:]), size, text}, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n", b)
	return nil
}

func auditTailCommand() *cobra.Command {
	var f logFlags
	var t tail
	var follow bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the latest records",
		Long: `Prints the latest signed records, one a line, and with --follow those to come.
From a server, the records of the token's tenant.
` + logFlagsHelp,
		Example: `  ron-kms audit tail --dir ./store
  ron-kms audit tail --dir ./store -n 100 --tenant acme --json
  ron-kms audit tail --endpoint unix:///run/ron-kms.sock --follow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			if t.n < 0 {
				return errors.New("-n wants a number from 0 on")
			}
			t.w = bufio.NewWriter(cmd.OutOrStdout())
			if s.server != nil {
				t.source = &serverTail{server: s.server}
			} else {
				local := &localTail{s: s}
				defer local.close()
				t.source = local
			}
			return t.run(cmd.Context(), follow)
		},
	}
	f.add(cmd, true)
	cmd.Flags().IntVarP(&t.n, "lines", "n", 10, "how many records")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that are appended, until interrupted")
	cmd.Flags().StringVar(&t.tenant, "tenant", "", "only the records of this tenant")
	cmd.Flags().BoolVar(&t.json, "json", false, "print JSON, one object a line")
	return cmd
}

// tail prints records as they come.
type tail struct {
	source tailSource
	w      *bufio.Writer
	n      int
	tenant string
	json   bool
	next   uint64 // the first record that was not looked at
}

// A tailSource has the records of a log up to the latest checkpoint.
type tailSource interface {
	// refresh looks at the log again, and returns how many records may be read.
	refresh(ctx context.Context) (size uint64, err error)
	// read calls fn for the records from index from on and before to.
	read(ctx context.Context, from, to uint64, fn func(index uint64, record []byte) error) error
}

// line is what is shown of a record.
type line struct {
	Kind       string `json:"kind"`
	Time       string `json:"ts"`
	Op         string `json:"op"`
	Tenant     string `json:"tenant"`
	Key        string `json:"key_id"`
	KeyVersion uint64 `json:"key_version"`
	Result     string `json:"result"`
	Actor      string `json:"actor"`
	KeySeq     uint64 `json:"key_seq"`
	Ref        uint64 `json:"ref"`
	Count      uint64 `json:"count"`
}

func (t *tail) run(ctx context.Context, follow bool) error {
	size, err := t.source.refresh(ctx)
	if err != nil {
		return err
	}
	if err := t.latest(ctx, size); err != nil {
		return err
	}
	for follow {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollInterval):
		}
		size, err := t.source.refresh(ctx)
		if err == nil && size > t.next {
			err = t.source.read(ctx, t.next, size, t.show)
			t.next = size
		}
		if err == nil {
			err = t.w.Flush()
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// latest prints the last records. Those of one tenant may be far apart, so it looks further and further back.
func (t *tail) latest(ctx context.Context, size uint64) error {
	type found struct {
		index  uint64
		record []byte
	}
	var all []found
	to := size
	for step := uint64(max(t.n, 1)); to > 0 && len(all) < t.n; step = min(4*step, 1<<16) {
		from := to - min(to, step)
		var here []found
		err := t.source.read(ctx, from, to, func(index uint64, record []byte) error {
			if t.wants(record) {
				here = append(here, found{index, bytes.Clone(record)})
			}
			return nil
		})
		if errors.Is(err, audit.ErrNotKept) {
			break
		}
		if err != nil {
			return err
		}
		all = append(here, all...)
		to = from
	}
	for _, r := range all[max(0, len(all)-t.n):] {
		if err := t.show(r.index, r.record); err != nil {
			return err
		}
	}
	t.next = size
	return t.w.Flush()
}

// wants reports whether a record is of the tenant.
func (t *tail) wants(record []byte) bool {
	if t.tenant == "" {
		return true
	}
	var l line
	return json.Unmarshal(record, &l) == nil && l.Tenant == t.tenant
}

// show prints a record.
func (t *tail) show(index uint64, record []byte) error {
	if !t.wants(record) {
		return nil
	}
	if t.json {
		b, err := json.Marshal(api.AuditRecord{Index: index, Record: record})
		if err == nil {
			_, err = fmt.Fprintf(t.w, "%s\n", b)
		}
		return err
	}
	var l line
	if err := json.Unmarshal(record, &l); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.w, "%8d  %s\n", index, l)
	return err
}

// String puts the record on one line, for people.
func (l line) String() string {
	when := l.Time
	if ts, err := time.Parse(time.RFC3339Nano, l.Time); err == nil {
		when = ts.UTC().Format("2006-01-02 15:04:05.000000")
	}
	words := []string{when, fmt.Sprintf("%-10s", printable(l.Kind))}
	add := func(format string, v any, given bool) {
		if given {
			words = append(words, fmt.Sprintf(format, v))
		}
	}
	add("%s", printable(l.Op), l.Op != "")
	add("%s", printable(l.Result), l.Result != "")
	switch {
	case l.KeyVersion > 0:
		add("%s", fmt.Sprintf("%s#v%d", printable(l.Key), l.KeyVersion), true)
	case l.Key != "":
		add("%s", printable(l.Key), true)
	default:
		add("tenant %s", printable(l.Tenant), l.Tenant != "")
	}
	add("seq %d", l.KeySeq, l.KeySeq > 0)
	switch l.Kind {
	case "checkpoint", "open", "map":
		add("over %d records", l.Ref, l.Ref > 0)
	default:
		add("answers %d", l.Ref-1, l.Ref > 0)
	}
	add("count %d", l.Count, l.Count > 0)
	add("by %s", printable(l.Actor), l.Actor != "")
	return strings.TrimRight(strings.Join(words, "  "), " ")
}

// printable keeps what turns a terminal's line around from doing so.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// localTail reads a log or an export here.
type localTail struct {
	s *logSource
	r *audit.Reader
}

func (t *localTail) refresh(ctx context.Context) (uint64, error) {
	if t.r != nil {
		raw, err := os.ReadFile(t.s.path + "/checkpoint")
		if err == nil && bytes.Equal(raw, t.r.Checkpoint()) {
			return t.r.Signed(), nil
		}
	}
	r, err := t.s.reader(ctx)
	if err != nil {
		return 0, err
	}
	if t.r != nil {
		// What was shown before must still be there.
		if err := errors.Join(r.Continues(t.r.Checkpoint()), t.r.Close()); err != nil {
			return 0, errors.Join(err, r.Close())
		}
	}
	t.r = r
	return r.Signed(), nil
}

var errEnough = errors.New("enough")

func (t *localTail) read(ctx context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	err := t.r.Read(ctx, from, func(index uint64, _ []byte, rec *audit.Record) error {
		if index >= to {
			return errEnough
		}
		b, err := rec.MarshalJSON()
		if err != nil {
			return err
		}
		return fn(index, b)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (t *localTail) close() {
	if t.r != nil {
		_ = t.r.Close() // nothing was written
	}
}

// serverTail reads the records that a server gives out. They are what the server says: only a proof is more.
type serverTail struct{ server *remote }

func (t *serverTail) refresh(ctx context.Context) (uint64, error) {
	raw, _, err := t.server.get(ctx, auditPath+"checkpoint")
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(raw), "\n")
	if len(lines) < 3 {
		return 0, errors.New("the server's checkpoint is malformed")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return 0, errors.New("the server's checkpoint is malformed")
	}
	return size, nil
}

func (t *serverTail) read(ctx context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	for from < to {
		q := url.Values{"from": {strconv.FormatUint(from, 10)}, "limit": {strconv.FormatUint(min(to-from, api.MaxAuditRecords), 10)}}
		body, header, err := t.server.get(ctx, auditPath+"records?"+q.Encode())
		if err != nil {
			return err
		}
		next, err := strconv.ParseUint(header.Get("X-Kms-Next-Index"), 10, 64)
		if err != nil || next > math.MaxInt64 {
			return errors.New("the server did not say where its records go on")
		}
		for _, b := range slices.DeleteFunc(bytes.Split(body, []byte("\n")), func(b []byte) bool { return len(b) == 0 }) {
			var r api.AuditRecord
			if err := json.Unmarshal(b, &r); err != nil {
				return fmt.Errorf("the server's records: %w", err)
			}
			if r.Index >= to {
				return nil
			}
			if err := fn(r.Index, r.Record); err != nil {
				return err
			}
		}
		if next <= from {
			return nil
		}
		from = next
	}
	return nil
}
