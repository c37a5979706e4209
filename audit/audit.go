// Package audit keeps the custodian's append-only record of every key operation:
// durable before it is acknowledged, hashed into one Merkle tree (RFC 6962 §2.1),
// numbered per key, and signed in checkpoints (C2SP tlog-checkpoint and signed-note).
//
// A log is a directory. [Create] makes it once, in an explicit ceremony; [Open] verifies all of it
// and never creates; [Verify] does the same from the outside with nothing but the public key.
// The byte formats are in docs/spec/audit-record.md and docs/spec/audit-log.md.
//
// What it catches: any change, removal, insertion or reordering of records, whole files included, and the
// removal of acknowledged records at the end. What it cannot catch alone: the whole directory put back to an
// earlier state. That needs a memory outside this disk: a kept checkpoint, a witness, or the receipts of clients.
package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Limits and defaults of a log. Sizes are in bytes.
const (
	DefaultSegmentSize        = 16 << 20
	DefaultCheckpointInterval = time.Second
	DefaultCheckpointRecords  = 4096
	DefaultHeartbeat          = time.Minute

	minSegmentSize = 64 << 10
	maxSegmentSize = 64 << 20

	// memoryRecords is how many of its latest records a memory log keeps.
	memoryRecords = 65536
	// offerQueue is how many offered records may wait for the disk before they are counted as lost.
	offerQueue = 4096
)

var (
	// ErrBusy is returned by Open when another process, or this one, has the log open.
	ErrBusy = errors.New("the audit log is in use")
	// ErrClosed is wrapped by every error of a log that was closed.
	ErrClosed = errors.New("the audit log is closed")
	// ErrFailed is wrapped by every error of a log that stopped after a failed write, sync or signature.
	// Such a log never tries again: what the disk holds is known only after the next Open.
	ErrFailed = errors.New("the audit log has failed and must be reopened")
	// ErrExists is returned by Create when the directory is not empty.
	ErrExists = errors.New("the directory is not empty")
	// ErrNotKept is returned by Read for records that a memory log no longer holds.
	ErrNotKept = errors.New("the record is no longer kept")
)

// A Verdict is what the verification of a log found, one word for metrics and runbooks.
type Verdict string

// The verdicts. Each refuses the log; none is repaired by the program.
const (
	VerdictMissing    Verdict = "missing"    // a file of the log is not there
	VerdictFormat     Verdict = "format"     // the format file is damaged, or belongs to another log or key
	VerdictHead       Verdict = "head"       // the head register is damaged beyond what a crash explains
	VerdictTruncated  Verdict = "truncated"  // records that were acknowledged are gone from the end
	VerdictHole       Verdict = "hole"       // a record is altered or gone, and authentic ones follow it
	VerdictForked     Verdict = "forked"     // as long as it should be, with another content
	VerdictTampered   Verdict = "tampered"   // records are altered, or bytes that no crash leaves were added
	VerdictCheckpoint Verdict = "checkpoint" // a checkpoint is missing, not signed by the key, or contradicts the records
	VerdictClosed     Verdict = "closed"     // the log was closed cleanly, yet something follows or differs
)

// advice tells the operator what to do, in plain words.
var advice = map[Verdict]string{
	VerdictMissing:    "restore the whole directory from its backup; do not create a new log in its place",
	VerdictFormat:     "check that this directory and this key belong together; restore the format file from the backup",
	VerdictHead:       "keep a copy of the directory, compare its size with the last known checkpoint, and restore from the backup",
	VerdictTruncated:  "keep a copy of the directory, find who removed records, and restore from the backup",
	VerdictHole:       "keep a copy of the directory and restore from the backup; records after the damage are intact",
	VerdictForked:     "keep a copy of the directory: two histories exist; compare both with the checkpoints held elsewhere",
	VerdictTampered:   "keep a copy of the directory and restore from the backup; records before the damage are intact",
	VerdictCheckpoint: "keep a copy of the directory and compare with the checkpoints held elsewhere",
	VerdictClosed:     "keep a copy of the directory: it changed while no program had it open; restore from the backup",
}

// An IntegrityError says that a log is not what its writer left. Open returns no log with it.
type IntegrityError struct {
	Verdict Verdict
	Index   uint64 // the number of leading records that are intact
	Segment int    // where the damage begins: segment number and byte offset in it
	Offset  int64
	Reason  string // what was found, in plain words
}

// Error says what was found, where, and what to do.
func (e *IntegrityError) Error() string {
	return fmt.Sprintf("audit: integrity: %s: %s (%d records intact; segment %d, offset %d): %s",
		e.Verdict, e.Reason, e.Index, e.Segment, e.Offset, advice[e.Verdict])
}

// Options configure a log. Origin, Signer and Verifier are required; MACKey too unless the log is in memory.
type Options struct {
	// Origin names the log in its checkpoints, as host/path without spaces or pluses. It must be the
	// name of Signer and Verifier, so that the public key alone tells which log it speaks for.
	Origin string
	// Signer signs checkpoints, and Verifier checks them. A signature that cannot be made stops the log.
	Signer   note.Signer
	Verifier note.Verifier
	// VerifierKey is the public key in text (C2SP vkey) for the format file, as a convenience to
	// auditors, who must know it from elsewhere to trust it. Empty writes the key's name and hash only.
	VerifierKey string
	// MACKey lends the 32-byte key of the frame and head MACs to use, for the duration of the call.
	MACKey func(use func(key []byte))
	// SegmentSize is the size of each segment file in bytes, a multiple of 512 from 64 KiB to 64 MiB. Only
	// Create reads it; it bounds a commit too. 0 is DefaultSegmentSize.
	SegmentSize int64
	// CheckpointInterval and CheckpointRecords say when new records are signed: after that time, or as
	// soon as that many are unsigned. Heartbeat is when an idle log signs that nothing happened.
	// 0 is the default.
	CheckpointInterval time.Duration
	CheckpointRecords  int
	Heartbeat          time.Duration
	// Clock gives the time of records. Nil is time.Now.
	Clock func() time.Time
	// Boot identifies this run of the program in every record. Zero is replaced by random bytes.
	Boot [16]byte
	// OnRecord, if set, is called by Open for each record found, in order. An error ends Open.
	OnRecord func(index uint64, r *Record) error
	// OnFailure, if set, is called once, without locks held, when the log becomes unable to append.
	OnFailure func(error)
}

// withDefaults checks o and fills in what was left out.
func (o Options) withDefaults(onDisk bool) (Options, error) {
	switch {
	case o.Origin == "" || len(o.Origin) > 255 || checkText(o.Origin) != nil || strings.ContainsAny(o.Origin, " +"):
		return o, errors.New("audit: options: origin is not a valid name")
	case o.Signer == nil || o.Verifier == nil:
		return o, errors.New("audit: options: signer and verifier are required")
	case o.Signer.Name() != o.Origin || o.Verifier.Name() != o.Origin:
		return o, errors.New("audit: options: signer and verifier must be named as the origin")
	case o.Signer.KeyHash() != o.Verifier.KeyHash():
		return o, errors.New("audit: options: signer and verifier are not one key")
	case onDisk && o.MACKey == nil:
		return o, errors.New("audit: options: the mac key is required")
	case o.CheckpointInterval < 0 || o.Heartbeat < 0 || o.CheckpointRecords < 0:
		return o, errors.New("audit: options: negative interval or count")
	}
	short := shortKey(o.Verifier)
	if o.VerifierKey == "" {
		o.VerifierKey = short
	}
	if o.VerifierKey != short && !strings.HasPrefix(o.VerifierKey, short+"+") {
		return o, errors.New("audit: options: the verifier key text is of another key")
	}
	if checkText(o.VerifierKey) != nil || strings.Contains(o.VerifierKey, " ") {
		return o, errors.New("audit: options: the verifier key text is malformed")
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.SegmentSize < minSegmentSize || o.SegmentSize > maxSegmentSize || o.SegmentSize%sector != 0 {
		return o, errors.New("audit: options: segment size is not a multiple of 512 from 64 KiB to 64 MiB")
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = DefaultCheckpointInterval
	}
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = DefaultCheckpointRecords
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Boot == [16]byte{} {
		rand.Read(o.Boot[:]) // never fails (crypto/rand)
	}
	return o, nil
}

// shortKey is the name and hash by which notes refer to v.
func shortKey(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

// A Receipt says where in the log a record stands. Who keeps receipts notices a rollback: for one
// key KeySeq never repeats, and CheckpointSize never falls.
type Receipt struct {
	Index          uint64 // 0-based position in the log
	KeySeq         uint64 // 1-based position among the records of its key; 0 if it has none
	CheckpointSize uint64 // records covered by the latest checkpoint when this one became durable
}
