package alg_test

import (
	"testing"

	"github.com/rustyonions/ron-kms/core/alg"
)

// a hybrid signature through preimage, bundle and mode. Under
// "and" it takes both halves, whole and of the same statement.
func TestHybrid(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	hybrid, _ := alg.Lookup("hybrid")
	keys := map[string]keyPair{}
	for _, tr := range hybrid.Tracks() {
		keys[tr.Name()] = generate(t, a, tr)
	}
	statement := alg.Statement{Suite: hybrid.Name(), KID: "t/p/hybrid/u#v1", Digest: [32]byte{1}}

	sign := func(s alg.Statement) (sigs []alg.Signature) {
		msg, err := s.AppendPreimage(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range hybrid.Tracks() {
			sigs = append(sigs, alg.Signature{KID: s.KID, Alg: tr.Name(), Value: keys[tr.Name()].sign(t, msg)})
		}
		return sigs
	}
	verdicts := func(s alg.Statement, sigs []alg.Signature) (v [3]alg.Verdict) { // by class
		b, err := alg.AppendBundle(nil, sigs)
		if err != nil {
			t.Fatal(err)
		}
		if sigs, err = alg.ParseBundle(b); err != nil {
			t.Fatal(err)
		}
		msg, err := s.AppendPreimage(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, sig := range sigs {
			k := keys[sig.Alg]
			v[k.track.Class()] = alg.Bad
			if k.public.Verify(msg, sig.Value) {
				v[k.track.Class()] = alg.OK
			}
		}
		return v
	}
	other := statement
	other.Suite = "ed25519" // what a stripped signature would have to claim
	for _, row := range []struct {
		name          string
		statement     alg.Statement
		change        func(sigs []alg.Signature) []alg.Signature
		classical, pq alg.Verdict
	}{
		{"whole", statement, func(s []alg.Signature) []alg.Signature { return s }, alg.OK, alg.OK},
		{"classical bad", statement, func(s []alg.Signature) []alg.Signature { s[0].Value[5] ^= 1; return s }, alg.Bad, alg.OK},
		{"pq bad", statement, func(s []alg.Signature) []alg.Signature { s[1].Value[5] ^= 1; return s }, alg.OK, alg.Bad},
		{"classical cut", statement, func(s []alg.Signature) []alg.Signature { s[0].Value = s[0].Value[1:]; return s }, alg.Bad, alg.OK},
		{"classical stripped", statement, func(s []alg.Signature) []alg.Signature { return s[1:] }, alg.Absent, alg.OK},
		{"pq stripped", statement, func(s []alg.Signature) []alg.Signature { return s[:1] }, alg.OK, alg.Absent},
		{"passed off as classical alone", other, func(s []alg.Signature) []alg.Signature { return s[:1] }, alg.Bad, alg.Absent},
		{"one of another statement", statement, func(s []alg.Signature) []alg.Signature {
			s[1] = sign(alg.Statement{Suite: hybrid.Name(), KID: statement.KID, Digest: [32]byte{2}})[1]
			return s
		}, alg.OK, alg.Bad},
	} {
		v := verdicts(row.statement, row.change(sign(statement)))
		classical, pq := v[alg.Classical], v[alg.PostQuantum]
		if classical != row.classical || pq != row.pq {
			t.Errorf("%s: classical %v, pq %v", row.name, classical, pq)
		}
		if want := row.name == "whole"; alg.ModeAnd.Satisfied(classical, pq) != want {
			t.Errorf("%s: and = %v", row.name, !want)
		}
	}
}
