package alg

import (
	"crypto"
	"encoding"
	"errors"
	"reflect"
	"unsafe"
)

// mldsa is ML-DSA with the parameter set whose circl types are PK and SK. An
// expanded key is the struct SK itself, placed in the arena: with its matrix
// and transforms computed, which take a third of the time of a signature.
type mldsa[PK, SK any, P mldsaPublic[PK], S mldsaPrivate[SK]] struct {
	newKey   func(seed *[32]byte) (*PK, *SK)
	signTo   func(key *SK, msg, ctx []byte, hedged bool, sig []byte) error
	verify   func(key *PK, msg, ctx, sig []byte) bool
	pointers bool // SK holds pointers
}

type mldsaPublic[PK any] interface {
	*PK
	encoding.BinaryUnmarshaler
	Bytes() []byte
}

type mldsaPrivate[SK any] interface {
	*SK
	Public() crypto.PublicKey
}

func newMLDSA[PK, SK any, P mldsaPublic[PK], S mldsaPrivate[SK]](
	newKey func(*[32]byte) (*PK, *SK),
	signTo func(*SK, []byte, []byte, bool, []byte) error,
	verify func(*PK, []byte, []byte, []byte) bool,
) signer {
	return mldsa[PK, SK, P, S]{newKey, signTo, verify, hasPointers(reflect.TypeFor[SK]())}
}

func (m mldsa[PK, SK, P, S]) expand(expanded, seed []byte) error {
	// The garbage collector does not look into the arena. A release of circl
	// with another struct must not turn into memory corruption.
	if m.pointers {
		return errors.New("this release of circl keeps pointers in ML-DSA private keys")
	}
	_, key := m.newKey((*[32]byte)(seed)) // on the heap
	*m.key(expanded) = *key
	var zero SK
	*key = zero
	return nil
}

func (m mldsa[PK, SK, P, S]) public(public, expanded []byte) error {
	// The key that Public returns points into the arena; only its encoding
	// leaves this function.
	copy(public, S(m.key(expanded)).Public().(P).Bytes())
	return nil
}

func (m mldsa[PK, SK, P, S]) sign(sig, expanded, msg, ctx []byte, hedged bool) error {
	return m.signTo(m.key(expanded), msg, ctx, hedged, sig)
}

// key returns the struct that is in the bytes of expanded. They are structSize
// long, Track has checked that; slots are aligned to 64 bytes, more than any
// type needs; and SK has no pointers, so any memory may hold one.
func (mldsa[PK, SK, P, S]) key(expanded []byte) *SK {
	return (*SK)(unsafe.Pointer(unsafe.SliceData(expanded)))
}

func (m mldsa[PK, SK, P, S]) parse(public []byte) (verifier, error) {
	key := new(PK)
	if err := P(key).UnmarshalBinary(public); err != nil {
		return nil, err
	}
	return mldsaVerifier[PK]{key, m.verify}, nil
}

type mldsaVerifier[PK any] struct {
	key *PK
	fn  func(key *PK, msg, ctx, sig []byte) bool
}

func (v mldsaVerifier[PK]) verify(msg, ctx, sig []byte) bool {
	return v.fn(v.key, msg, ctx, sig)
}

// structSize returns the size of a T in bytes.
func structSize[T any]() int {
	var t T
	return int(unsafe.Sizeof(t))
}

// hasPointers reports whether a value of type t can hold a pointer.
func hasPointers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return false
	case reflect.Array:
		return t.Len() > 0 && hasPointers(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if hasPointers(t.Field(i).Type) {
				return true
			}
		}
		return false
	}
	return true
}
