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

	"github.com/rustyonions/ron-kms/audit/fsys"
	"github.com/rustyonions/ron-kms/audit/notekey"
	"github.com/rustyonions/ron-kms/audit/tiles"
)

// Limits and defaults of a log. Sizes are in bytes.
const (
	DefaultSegmentSize        = 16 << 20
	DefaultCheckpointInterval = time.Second
	DefaultCheckpointRecords  = 4096
	DefaultHeartbeat          = time.Minute
	DefaultRingSegments       = 8
	DefaultScrubInterval      = time.Second
	DefaultWitnessInterval    = 10 * time.Second

	minSegmentSize = 64 << 10
	maxSegmentSize = 64 << 20
	minSegments    = 5 // one in use, one being packed, two spare, and one to be recycled
	maxSegments    = 64

	// memoryRecords is how many of its latest records a memory log keeps.
	memoryRecords = 65536
	// offerQueue is how many offered records may wait for the disk before they are counted as lost.
	offerQueue = 4096
)

var (
	// ErrBusy is returned by Open when another process, or this one, has the log open.
	ErrBusy = fsys.ErrBusy
	// ErrClosed is wrapped by every error of a log that was closed.
	ErrClosed = errors.New("the audit log is closed")
	// ErrFailed is wrapped by every error of a log that stopped after a failed write, sync or signature.
	// Such a log never tries again: what the disk holds is known only after the next Open.
	ErrFailed = errors.New("the audit log has failed and must be reopened")
	// ErrExists is returned by Create when the directory is not empty.
	ErrExists = errors.New("the directory is not empty")
	// ErrFull is wrapped by the errors of Append while the disk has no place. Nothing was recorded, and nothing is lost: the log
	// takes records again by itself when there is place.
	ErrFull = errors.New("the disk of the audit log is full")
	// ErrNotKept is returned by Read for records that were pruned, or that a memory log no longer holds.
	ErrNotKept = tiles.ErrPruned
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
	VerdictSnapshot   Verdict = "snapshot"   // the snapshot is damaged, or not of this log
	VerdictStale      Verdict = "stale"      // an anchor or a witness knows a longer log: this one was put back
	VerdictAnchor     Verdict = "anchor"     // an anchor is of another log, or older than a crash explains
	VerdictExport     Verdict = "export"     // an export, a proof or a server's answer is not what the keys of the log signed
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
	VerdictSnapshot:   "keep a copy of the directory and restore the snapshot file from the backup; ron-kms audit verify reads the records themselves",
	VerdictStale:      "keep a copy of the directory: it is older than what others have seen; find the newer one, or follow docs/runbooks/integrity.md",
	VerdictAnchor:     "check that this anchor belongs to this log and was not put back; see docs/runbooks/integrity.md",
	VerdictExport:     "do not rely on it; get it from the log again, and keep both if it comes the same",
	VerdictClosed:     "keep a copy of the directory: it changed while no program had it open; restore from the backup",
}

// An IntegrityError says that a log is not what its writer left. Open returns no log with it.
type IntegrityError struct {
	Verdict Verdict
	Index   uint64 // the number of leading records that are intact
	Segment int    // where the damage begins: segment number and byte offset in it; -1 if that is not in the ring
	Offset  int64
	Reason  string // what was found, in plain words
}

// Error says what was found, where, and what to do.
func (e *IntegrityError) Error() string {
	if e.Segment < 0 {
		return fmt.Sprintf("audit: integrity: %s: %s (%d records intact): %s", e.Verdict, e.Reason, e.Index, advice[e.Verdict])
	}
	return fmt.Sprintf("audit: integrity: %s: %s (%d records intact; segment %d, offset %d): %s",
		e.Verdict, e.Reason, e.Index, e.Segment, e.Offset, advice[e.Verdict])
}

// Options configure a log. Origin, Signers and Keys are required; MACKey too unless the log is in memory.
type Options struct {
	// Origin names the log in its checkpoints, as host/path without spaces or pluses. It is the name of the keys, so that
	// the public keys alone tell which log they speak for.
	Origin string
	// Signers sign checkpoints, and Keys are their public keys: all of them sign each one. A signature that cannot be made
	// stops the log.
	Signers []note.Signer
	Keys    *notekey.Set
	// MACKey lends the 32-byte key of the MACs of frames, head and snapshot to use, for the duration of the call.
	MACKey func(use func(key []byte))
	// SegmentSize is the size of each segment file in bytes, a multiple of 512 from 64 KiB to 64 MiB. Only
	// Create reads it; it bounds a commit too. 0 is DefaultSegmentSize.
	SegmentSize int64
	// RingSegments is how many segments there may be, from 5 to 64. They hold what is not packed yet, and so bound how much work
	// opening is. 0 is the default.
	RingSegments int
	// CheckpointInterval and CheckpointRecords say when new records are signed: after that time, or as
	// soon as that many are unsigned. Heartbeat is when an idle log signs that nothing happened.
	// 0 is the default.
	CheckpointInterval time.Duration
	CheckpointRecords  int
	Heartbeat          time.Duration
	// ScrubInterval is the time between steps of the scrubber, each of which reads 4096 packed records again. 0 is the default.
	ScrubInterval time.Duration
	// Anchors keep the log's head elsewhere.
	Anchors []AnchorOption
	// Witnesses see the log's checkpoints, one each WitnessInterval at most. 0 is the default.
	Witnesses       []WitnessOption
	WitnessInterval time.Duration
	// Clock gives the time of records. Nil is time.Now.
	Clock func() time.Time
	// Boot identifies this run of the program in every record. Zero is replaced by random bytes.
	Boot [16]byte
	// OnFailure, if set, is called once, without locks held, when the log becomes unable to append. The error may be an
	// *IntegrityError that the scrubber or a witness led to.
	OnFailure func(error)

	// begun are written before the record of the opening. Succeed sets them.
	begun []*Record
}

// withDefaults checks o and fills in what was left out.
func (o Options) withDefaults(onDisk bool) (Options, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&o.CheckpointInterval, DefaultCheckpointInterval}, {&o.Heartbeat, DefaultHeartbeat},
		{&o.ScrubInterval, DefaultScrubInterval}, {&o.WitnessInterval, DefaultWitnessInterval},
	} {
		if *d.v < 0 {
			return o, errors.New("audit: options: negative interval")
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.RingSegments == 0 {
		o.RingSegments = DefaultRingSegments
	}
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = DefaultCheckpointRecords
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Boot == [16]byte{} {
		rand.Read(o.Boot[:]) // never fails (crypto/rand)
	}
	switch {
	case o.Origin == "" || len(o.Origin) > 255 || checkText(o.Origin) != nil || strings.ContainsAny(o.Origin, " +"):
		return o, errors.New("audit: options: origin is not a valid name")
	case len(o.Signers) == 0 || o.Keys == nil:
		return o, errors.New("audit: options: signers and keys are required")
	case o.Keys.Name() != o.Origin:
		return o, errors.New("audit: options: the keys must be named as the origin")
	case onDisk && o.MACKey == nil:
		return o, errors.New("audit: options: the mac key is required")
	case o.CheckpointRecords < 0:
		return o, errors.New("audit: options: negative count")
	case o.SegmentSize < minSegmentSize || o.SegmentSize > maxSegmentSize || o.SegmentSize%sector != 0:
		return o, errors.New("audit: options: segment size is not a multiple of 512 from 64 KiB to 64 MiB")
	case o.RingSegments < minSegments || o.RingSegments > maxSegments:
		return o, fmt.Errorf("audit: options: ring segments are not from %d to %d", minSegments, maxSegments)
	}
	for _, s := range o.Signers {
		if s.Name() != o.Origin {
			return o, errors.New("audit: options: the signers must be named as the origin")
		}
	}
	for _, a := range o.Anchors {
		switch a.Mode {
		case AnchorCheckpoint, AnchorAsync, AnchorStrict:
		case AnchorMirror:
			if _, ok := a.Anchor.(mirrored); !ok {
				return o, errors.New("audit: options: only an anchor in a directory can be a mirror")
			}
		default:
			return o, fmt.Errorf("audit: options: anchor mode %q is unknown", a.Mode)
		}
	}
	return o, nil
}

// ResultOK is the result of an operation that did what was asked. An operation with it that answers an intent says that the
// intent had its effect.
const ResultOK = "ok"

// A Receipt says where in the log a record stands. Who keeps receipts notices a rollback: for one
// key KeySeq never repeats, and CheckpointSize never falls.
type Receipt struct {
	Index          uint64 // 0-based position in the log
	KeySeq         uint64 // 1-based position among the records of its key; 0 if it has none
	CheckpointSize uint64 // records covered by the latest checkpoint when this one became durable
}
