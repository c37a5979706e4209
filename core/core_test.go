package core_test

import (
	"testing"

	"github.com/rustyonions/ron-kms/core"
	. "github.com/rustyonions/ron-kms/core/coretest"
)

func TestSmoke(t *testing.T) {
	for _, name := range []string{"ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"} {
		k := Amnesia(t)
		s := Session(t, k, "acme")
		c := Create(t, k, s, name)
		sig := Sign(t, k, s, c.KID, Digest(1))
		if !Verify(t, k, s, Digest(1), sig.Sigs).OK {
			t.Fatal("not ok")
		}
		Rotate(t, k, s, c.KID)
		if !Verify(t, k, s, Digest(1), sig.Sigs).OK {
			t.Fatal("not ok")
		}
	}
	cfg := Config(t)
	Init(t, cfg)
	k := Open(t, cfg, core.Options{})
	s := Session(t, k, "acme")
	c := Create(t, k, s, "ed25519+ml-dsa-65")
	sig := Sign(t, k, s, c.KID, Digest(1))
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = Open(t, cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Fatal(r)
	}
	s = Session(t, k, "acme")
	if !Verify(t, k, s, Digest(1), sig.Sigs).OK {
		t.Fatal("not ok")
	}
}
