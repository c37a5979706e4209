package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const counterSize = 8

// index is an NV index: everything that its Name is made of, and what to call
// it.
type index struct {
	handle tpm2.TPMHandle
	kind   tpm2.TPMNT
	size   uint16
	blank  bool // defined and never written
	what   string
}

func (ix index) String() string {
	return fmt.Sprintf("%s index %08x", ix.what, uint32(ix.handle))
}

// unwritten is ix as it is between its definition and its first write.
func (ix index) unwritten() index {
	ix.blank = true
	return ix
}

// public is the public area. The owner can neither write nor read: AuthWrite
// and AuthRead are all there is. WriteAll: a record is never written in part.
// NoDA: whoever tries wrong auth values must not be able to lock the TPM for
// the log; 32 bytes cannot be guessed.
func (ix index) public() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: ix.handle,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			NT:        ix.kind,
			AuthWrite: true,
			AuthRead:  true,
			NoDA:      true,
			WriteAll:  ix.kind == tpm2.TPMNTOrdinary,
			Written:   !ix.blank,
		},
		DataSize: ix.size,
	}
}

// name is computed, not asked for: a session's HMAC covers it on both sides, so
// an index with any other public area (a plain one in place of the counter)
// cannot answer.
func (ix index) name() (tpm2.TPM2BName, error) {
	p := ix.public()
	n, err := tpm2.NVName(&p)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	return *n, nil
}

// handles returns ix as the two handles that NV commands have.
func (ix index) handles(session tpm2.Session) (auth tpm2.AuthHandle, nv tpm2.NamedHandle, err error) {
	n, err := ix.name()
	return tpm2.AuthHandle{Handle: ix.handle, Name: n, Auth: session}, tpm2.NamedHandle{Handle: ix.handle, Name: n}, err
}

func ownerHandle(session tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner), Auth: session}
}

// session begins an HMAC session: each side proves by it, in every command and
// answer, that it knows the auth value, and neither shows it.
func (l *link) session(opts ...tpm2.AuthOption) (tpm2.Session, error) {
	s, _, err := tpm2.HMACSession(l, tpm2.TPMAlgSHA256, 16, opts...)
	if err != nil {
		return nil, plain("start a session", err)
	}
	l.hold(s.Handle())
	return s, nil
}

// saltKey makes a key in the TPM whose public part hides the secret of a
// session. The null hierarchy needs no authorization. The key keeps listeners
// out; it does not prove that this is a TPM, which nothing here relies on.
func (l *link) saltKey() (tpm2.AuthOption, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHNull,
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(l)
	if err != nil {
		return nil, plain("make a key", err)
	}
	l.hold(rsp.ObjectHandle)
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, plain("make a key", err)
	}
	return tpm2.Salted(rsp.ObjectHandle, *public), nil
}

func (l *link) read(ix index, session tpm2.Session) ([]byte, error) {
	auth, nv, err := ix.handles(session)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.NVRead{AuthHandle: auth, NVIndex: nv, Size: ix.size}.Execute(l)
	if err != nil {
		return nil, l.explain(ix, "read", err)
	}
	return rsp.Data.Buffer, nil
}

func (l *link) count(ix index, session tpm2.Session) (uint64, error) {
	b, err := l.read(ix, session)
	if err != nil {
		return 0, err
	}
	if len(b) != counterSize {
		return 0, fmt.Errorf("read %s: %d bytes", ix, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

func (l *link) write(ix index, session tpm2.Session, b []byte) error {
	auth, nv, err := ix.handles(session)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{AuthHandle: auth, NVIndex: nv, Data: tpm2.TPM2BMaxNVBuffer{Buffer: b}}.Execute(l)
	return l.explain(ix, "write", err)
}

func (l *link) increment(ix index, session tpm2.Session) error {
	auth, nv, err := ix.handles(session)
	if err != nil {
		return err
	}
	_, err = tpm2.NVIncrement{AuthHandle: auth, NVIndex: nv}.Execute(l)
	return l.explain(ix, "increment", err)
}

func (l *link) define(ix index, owner tpm2.Session, auth []byte) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: ownerHandle(owner),
		Auth:       tpm2.TPM2BAuth{Buffer: auth},
		PublicInfo: tpm2.New2B(ix.unwritten().public()),
	}.Execute(l)
	switch {
	case errors.Is(err, tpm2.TPMRCNVDefined):
		return fmt.Errorf("%w at %s", ErrExists, ix)
	case errors.Is(err, tpm2.TPMRCNVSpace):
		return fmt.Errorf("define %s: no room in the nv memory of the tpm: %w", ix, err)
	}
	return plain("define "+ix.String()+" as the owner", err)
}

func (l *link) undefine(ix index, owner tpm2.Session) error {
	_, nv, err := ix.handles(nil)
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: ownerHandle(owner), NVIndex: nv}.Execute(l)
	return plain("undefine "+ix.String()+" as the owner", err)
}

// public asks for the public area of ix. The answer is not authenticated.
func (l *link) public(ix index) (*tpm2.TPMSNVPublic, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: ix.handle}.Execute(l)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: %s is not defined", ErrMissing, ix)
	}
	if err != nil {
		return nil, plain("look at "+ix.String(), err)
	}
	return rsp.NVPublic.Contents()
}

// owned returns ix, perhaps as unwritten, if it is in the TPM, is of the kind
// that it should be, and takes the session's auth value.
func (l *link) owned(ix index, session tpm2.Session) (index, error) {
	public, err := l.public(ix)
	if err != nil {
		return ix, err
	}
	ix.blank = !public.Attributes.Written
	// Reading an index that is unwritten fails, but only after the TPM has
	// checked the authorization.
	_, err = l.read(ix, session)
	if ix.blank && errors.Is(err, tpm2.TPMRCNVUninitialized) {
		err = nil
	}
	return ix, err
}

// explain puts what the TPM said of an NV command in the words of this package.
func (l *link) explain(ix index, what string, err error) error {
	what += " " + ix.String()
	switch {
	case errors.Is(err, tpm2.TPMRCHandle):
		return fmt.Errorf("%w: %s is not defined: it was removed, or the tpm was cleared, or is another", ErrMissing, ix)
	case errors.Is(err, tpm2.TPMRCNVUninitialized):
		return fmt.Errorf("%w: the creation of %s was not finished: %w", ErrMissing, ix, err)
	case refused(err):
		// A wrong auth value and an unexpected public area look the same
		// to a session. Either way it is refused; this is only about words.
		public, lookErr := l.public(ix)
		if lookErr != nil {
			return errors.Join(plain(what, err), lookErr)
		}
		if got, want := *public, ix.public(); !samePublic(got, want) {
			got.Attributes.Written = want.Attributes.Written
			if samePublic(got, want) {
				return fmt.Errorf("%w: the creation of %s was not finished", ErrMissing, ix)
			}
			return fmt.Errorf("%w: %s is not as an anchor defines it", ErrTampered, ix)
		}
	}
	return plain(what, err)
}

func samePublic(a, b tpm2.TPMSNVPublic) bool {
	return a.NVIndex == b.NVIndex && a.NameAlg == b.NameAlg && a.Attributes == b.Attributes &&
		len(a.AuthPolicy.Buffer) == len(b.AuthPolicy.Buffer) && a.DataSize == b.DataSize
}

func refused(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}

// plain says what failed, and names the answers that an operator can act on.
func plain(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case refused(err):
		return fmt.Errorf("%s: %w: %w", what, ErrAuth, err)
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%s: %w: %w", what, ErrLockout, err)
	case errors.Is(err, tpm2.TPMRCInitialize):
		return fmt.Errorf("%s: the tpm was not started (TPM2_Startup): %w", what, err)
	case errors.Is(err, tpm2.TPMRCFailure):
		return fmt.Errorf("%s: the tpm is in failure mode: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
