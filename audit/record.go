package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind says what a record is about. The numbers are on disk and are never reused.
type Kind uint8

// The kinds of record. Callers append KindIntent, KindOperation, KindDenied, KindGap and KindNoise; the log itself
// writes the others.
const (
	KindGenesis    Kind = 1  // the first record: InputHash is the SHA-256 of the format file
	KindOpen       Kind = 2  // the log was opened: Ref and InputHash name the latest checkpoint
	KindIntent     Kind = 3  // a change that is about to be made
	KindOperation  Kind = 4  // a key operation and its result
	KindDenied     Kind = 5  // a refusal of an authenticated caller
	KindCheckpoint Kind = 6  // a checkpoint over Ref records, whose note has the SHA-256 InputHash
	KindRecovery   Kind = 7  // Open discarded Count bytes with the SHA-256 InputHash; Op says where
	KindGap        Kind = 8  // Count offered records could not be written
	KindClose      Kind = 9  // the log was closed cleanly
	KindNoise      Kind = 10 // Count refusals of unauthenticated callers
	KindMap        Kind = 11 // InputHash is the root of the key map after the first Ref records; Count is its number of keys
	KindPrune      Kind = 12 // the records before index Count were given up, by the policy in Detail
	KindKeys       Kind = 13 // the keys that sign checkpoints were replaced: InputHash is the SHA-256 of the handover in Detail
)

var kindNames = [...]string{
	KindGenesis: "genesis", KindOpen: "open", KindIntent: "intent", KindOperation: "operation", KindDenied: "denied",
	KindCheckpoint: "checkpoint", KindRecovery: "recovery", KindGap: "gap", KindClose: "close", KindNoise: "noise",
	KindMap: "map", KindPrune: "prune", KindKeys: "keys",
}

// String returns the lower-case name of k, or "unknown".
func (k Kind) String() string {
	if !k.valid() {
		return "unknown"
	}
	return kindNames[k]
}

func (k Kind) valid() bool { return k >= KindGenesis && k <= KindKeys }

// appendable reports whether callers may append records of kind k.
func (k Kind) appendable() bool {
	switch k {
	case KindIntent, KindOperation, KindDenied, KindGap, KindNoise:
		return true
	}
	return false
}

// A Record is one leaf of the log. The zero value of a field means that it is absent; Kind and Time are required.
type Record struct {
	Kind        Kind
	Time        time.Time // UTC, in microseconds; the log fills in a zero one
	Boot        [16]byte  // the run of the program that wrote it; set by the log
	Op          string    // the verb
	OpID        [16]byte  // a UUID
	Tenant      string
	Key         string // the kid without its version; name only keys that exist: each has a sequence in memory
	KeyVersion  uint32
	Alg         string
	Purpose     string
	InputHash   [32]byte
	Result      string // "ok" or an error code
	Actor       string // the capability's identifier, never the token
	Attestation string
	KeySeq      uint64 // 1, 2, … among the records of Key; set by the log for intents, operations and denials
	KeyPrev     uint64 // log index + 1 of the previous record of Key; set by the log
	Ref         uint64 // log index + 1 of the record that this one answers
	Count       uint64 // how many events an aggregate stands for
	Detail      []byte
	Sealed      []byte // Actor and Detail, encrypted by the caller, who leaves those two empty; opaque to the log

	// ext holds unknown optional fields (tags from 0x81), verbatim.
	ext []byte
}

const (
	recordVersion = 1
	maxRecord     = 65535 // C2SP tlog-tiles: an entry's length is a uint16
	maxText       = 255
	maxKid        = 640
	tagOptional   = 0x80 // tags from here on may be unknown to a reader
	tagSealed     = 0x80

	// placeFields is the encoded size of what depends on a record's place: key_seq and key_prev.
	placeFields = 2 * (3 + 8)

	// maxTime is the first microsecond of the year 10000, which RFC 3339 cannot write.
	maxTime = 253402300800 * 1_000_000
)

// The tags of the fields, in the order of their encoding.
const (
	tagKind = iota + 1
	tagTime
	tagBoot
	tagOp
	tagOpID
	tagTenant
	tagKey
	tagKeyVersion
	tagAlg
	tagPurpose
	tagInputHash
	tagResult
	tagActor
	tagAttestation
	tagKeySeq
	tagKeyPrev
	tagRef
	tagCount
	tagDetail
)

// sequenced reports whether r takes a number in the sequence of its key.
func (r *Record) sequenced() bool {
	return r.Key != "" && (r.Kind == KindIntent || r.Kind == KindOperation || r.Kind == KindDenied)
}

// check reports why r cannot be encoded, apart from its time and total length.
func (r *Record) check() error {
	if !r.Kind.valid() {
		return fmt.Errorf("audit: record: kind %d is unknown", r.Kind)
	}
	for _, f := range [...]struct {
		name, text string
		max        int
	}{
		{"op", r.Op, maxText}, {"tenant", r.Tenant, maxText}, {"key", r.Key, maxKid}, {"alg", r.Alg, maxText},
		{"purpose", r.Purpose, maxText}, {"result", r.Result, maxText}, {"actor", r.Actor, maxText},
		{"attestation", r.Attestation, maxText},
	} {
		if len(f.text) > f.max {
			return fmt.Errorf("audit: record: %s is longer than %d bytes", f.name, f.max)
		}
		if err := checkText(f.text); err != nil {
			return fmt.Errorf("audit: record: %s: %w", f.name, err)
		}
	}
	if len(r.Detail) > maxRecord || len(r.Sealed) > maxRecord {
		return errTooLong
	}
	return nil
}

var errTooLong = fmt.Errorf("audit: record: longer than %d bytes", maxRecord)

// checkText refuses what would be ambiguous or dangerous on a terminal.
func checkText(s string) error {
	for i, c := range s {
		if c == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return errors.New("not valid UTF-8")
			}
		}
		if unicode.IsControl(c) {
			return errors.New("control character")
		}
	}
	return nil
}

// AppendBinary appends the canonical encoding of r to b (docs/spec/audit-record.md). Times are cut to microseconds. It
// returns an error, and b unchanged, if a field is out of range or the encoding would exceed 65535 bytes.
func (r *Record) AppendBinary(b []byte) ([]byte, error) {
	start := len(b)
	e, at, err := r.appendUnplaced(b)
	if err != nil {
		return b, err
	}
	var place [placeFields]byte
	p := appendUint64(appendUint64(place[:0], tagKeySeq, r.KeySeq), tagKeyPrev, r.KeyPrev)
	if len(e)-start+len(p) > maxRecord {
		return b, errTooLong
	}
	return slices.Insert(e, at, p...), nil
}

// appendUnplaced appends the encoding of r without the fields that depend on its place, KeySeq and KeyPrev. They belong
// at offset at of the result.
func (r *Record) appendUnplaced(b []byte) (e []byte, at int, err error) {
	if err := r.check(); err != nil {
		return b, 0, err
	}
	us := r.Time.UnixMicro()
	if us <= 0 || us >= maxTime {
		return b, 0, errors.New("audit: record: time is out of range")
	}
	e = append(b, recordVersion, tagKind, 0, 1, byte(r.Kind))
	e = appendUint64(e, tagTime, uint64(us))
	e = appendField(e, tagBoot, nonZero(r.Boot[:]))
	e = appendField(e, tagOp, r.Op)
	e = appendField(e, tagOpID, nonZero(r.OpID[:]))
	e = appendField(e, tagTenant, r.Tenant)
	e = appendField(e, tagKey, r.Key)
	if r.KeyVersion != 0 {
		e = append(e, tagKeyVersion, 0, 4)
		e = binary.BigEndian.AppendUint32(e, r.KeyVersion)
	}
	e = appendField(e, tagAlg, r.Alg)
	e = appendField(e, tagPurpose, r.Purpose)
	e = appendField(e, tagInputHash, nonZero(r.InputHash[:]))
	e = appendField(e, tagResult, r.Result)
	e = appendField(e, tagActor, r.Actor)
	e = appendField(e, tagAttestation, r.Attestation)
	at = len(e)
	e = appendUint64(e, tagRef, r.Ref)
	e = appendUint64(e, tagCount, r.Count)
	e = appendField(e, tagDetail, r.Detail)
	e = appendField(e, tagSealed, r.Sealed)
	return append(e, r.ext...), at, nil
}

func appendField[T string | []byte](b []byte, tag byte, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = append(b, tag, byte(len(v)>>8), byte(len(v)))
	return append(b, v...)
}

func appendUint64(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.BigEndian.AppendUint64(append(b, tag, 0, 8), v)
}

// nonZero returns b, or nil if all its bytes are zero.
func nonZero(b []byte) []byte {
	if allZero(b) {
		return nil
	}
	return b
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// ParseRecord decodes one record. It accepts exactly what AppendBinary produces, and unknown optional
// fields, which it keeps: one value has one byte string. It keeps no reference to b.
func ParseRecord(b []byte) (*Record, error) {
	if len(b) > maxRecord {
		return nil, errTooLong
	}
	if len(b) == 0 || b[0] != recordVersion {
		return nil, errors.New("audit: record: unknown version")
	}
	r := new(Record)
	last := -1
	for rest := b[1:]; len(rest) > 0; {
		if len(rest) < 3 {
			return nil, errors.New("audit: record: field cut short")
		}
		tag, n := rest[0], int(binary.BigEndian.Uint16(rest[1:]))
		if len(rest) < 3+n {
			return nil, errors.New("audit: record: field cut short")
		}
		if int(tag) <= last {
			return nil, errors.New("audit: record: fields are not in ascending order")
		}
		last = int(tag)
		if n == 0 {
			return nil, fmt.Errorf("audit: record: field %d is empty", tag)
		}
		if tag >= tagOptional && tag != tagSealed {
			r.ext = append(r.ext, rest[:3+n]...)
		} else if err := r.setField(tag, rest[3:3+n]); err != nil {
			return nil, err
		}
		rest = rest[3+n:]
	}
	if r.Time.IsZero() {
		return nil, errors.New("audit: record: no time")
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

// setField decodes one field. Zero values are refused: they are encoded by leaving the field out.
func (r *Record) setField(tag byte, v []byte) error {
	width := func(n int) error {
		if len(v) != n || allZero(v) {
			return fmt.Errorf("audit: record: field %d is not a non-zero value of %d bytes", tag, n)
		}
		return nil
	}
	var err error
	u64 := func(p *uint64) {
		if err = width(8); err == nil {
			*p = binary.BigEndian.Uint64(v)
		}
	}
	fixed := func(p []byte) {
		if err = width(len(p)); err == nil {
			copy(p, v)
		}
	}
	switch tag {
	case tagKind:
		if err = width(1); err == nil {
			r.Kind = Kind(v[0])
		}
	case tagTime:
		var us uint64
		if u64(&us); err == nil && us >= maxTime {
			err = errors.New("audit: record: time is out of range")
		}
		if err == nil {
			r.Time = time.UnixMicro(int64(us)).UTC()
		}
	case tagBoot:
		fixed(r.Boot[:])
	case tagOp:
		r.Op = string(v)
	case tagOpID:
		fixed(r.OpID[:])
	case tagTenant:
		r.Tenant = string(v)
	case tagKey:
		r.Key = string(v)
	case tagKeyVersion:
		if err = width(4); err == nil {
			r.KeyVersion = binary.BigEndian.Uint32(v)
		}
	case tagAlg:
		r.Alg = string(v)
	case tagPurpose:
		r.Purpose = string(v)
	case tagInputHash:
		fixed(r.InputHash[:])
	case tagResult:
		r.Result = string(v)
	case tagActor:
		r.Actor = string(v)
	case tagAttestation:
		r.Attestation = string(v)
	case tagKeySeq:
		u64(&r.KeySeq)
	case tagKeyPrev:
		u64(&r.KeyPrev)
	case tagRef:
		u64(&r.Ref)
	case tagCount:
		u64(&r.Count)
	case tagDetail:
		r.Detail = append([]byte(nil), v...)
	case tagSealed:
		r.Sealed = append([]byte(nil), v...)
	default:
		err = fmt.Errorf("audit: record: field %d is unknown", tag)
	}
	return err
}
