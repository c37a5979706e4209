package abi

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/coretest"
)

// create, sign, verify, rotate and destroy from C, for every algorithm;
// what was signed holds after rotation and destruction, and nothing changed
// holds. A buffer too small has no side effect: receipts are neighbours.
func TestRoundtrip(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/roundtrip.c")
	s := newStore(t, "")
	output(t, program, s.json, coretest.Passphrase, s.token(t, "acme"))
}

// wrap, unwrap, rewrap, derive and both batches from C,
// through ronkms_call, and what they refuse; an ed25519 key with a companion
// signs into the buffer whose size was asked for.
func TestVerbs(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/verbs.c")
	s := newStore(t, "")
	output(t, program, s.json, coretest.Passphrase, s.token(t, "acme"), s.token(t, "stranger"))
}

// stale and invented handles, wild pointers, impossible lengths,
// structs of other versions, bad requests, tokens and configurations are
// errors with the documented code, leave no output, and do not stop the
// process or the store. A stranger cannot tell which keys exist.
func TestMisuse(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/misuse.c")
	s := newStore(t, "")
	output(t, program, s.json, coretest.Passphrase, s.token(t, "acme"), s.token(t, "stranger"), s.token(t, "acme", "kms:read"))
}

// A store closed under 32 threads lets running calls finish and refuses the
// rest; of four threads that close it, one succeeds. What was signed is in the
// log: the store opens again in order.
func TestCloseDuringCalls(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/threads.c")
	s := newStore(t, "")
	output(t, program, s.json, coretest.Passphrase, s.token(t, "acme"))
	k := coretest.Open(t, s.cfg, core.Options{})
	if r := k.Ready(); !r.Ready {
		t.Errorf("after closing under load: %+v", r)
	}
}

// In a child of fork every function refuses, and none hangs.
func TestFork(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/fork.c")
	s := newStore(t, "")
	output(t, program, s.json, coretest.Passphrase, s.token(t, "acme"))
}

// The library loads at run time, unloads and loads again; and no crash of the
// host writes secrets to disk, as the header says.
func TestLoadUnload(t *testing.T) {
	t.Parallel()
	output(t, compile(t, "c/dl.c"), libDir+"/libronkms.so.0")
}

// The control plane of the library answers while the store is open and is gone
// when ronkms_close returns.
func TestHTTP(t *testing.T) {
	t.Parallel()
	program := compile(t, "c/http.c")
	s := newStore(t, "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, s.json, coretest.Passphrase)
	killGroup(cmd)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	address, err := lines.ReadString('\n')
	if err != nil {
		cmd.Wait()
		t.Fatalf("no address: %v: %s", err, stderr.String())
	}
	address = strings.TrimSuffix(address, "\n")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(address + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/healthz: %s", resp.Status)
	}
	resp, err = client.Get(address + "/v1/kms/keys?tenant=acme")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("list without a token: %s", resp.Status)
	}
	if _, err := io.WriteString(stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); line != "closed\n" {
		t.Errorf("closing: %q, %v: %s", line, err, stderr.String())
	}
	if _, err := client.Get(address + "/healthz"); err == nil {
		t.Error("the control plane answers after ronkms_close")
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

// The examples work as they are printed in the documentation.
func TestExamples(t *testing.T) {
	t.Parallel()
	needs(t, "python3")
	s := newStore(t, "")
	token := s.token(t, "acme")
	kid := createKey(t, s, token)
	configFile, tokenFile := s.files(t, token)
	const digest = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
	absent := "acme/docs/ed25519/" + uuid.NewString()
	for _, c := range []struct {
		program string
		args    []string
		want    string
	}{
		{"sign_verify", []string{configFile, tokenFile, kid, digest}, "signed and verified"},
		{"rotate", []string{configFile, tokenFile, "acme"}, "#v2"},
		{"errors", []string{configFile, tokenFile, kid}, "signed: "},
		{"errors", []string{configFile, tokenFile, absent}, "there is no such key"},
		{"errors", []string{configFile, tokenFile, "other" + strings.TrimPrefix(kid, "acme")}, "another token is needed: tenant-mismatch"},
	} {
		out := output(t, compile(t, root+"/bindings/c/"+c.program+".c"), c.args...)
		if !strings.Contains(out, c.want) {
			t.Errorf("%s prints %q without %q", c.program, out, c.want)
		}
	}
	out := outputEnv(t, pythonEnv(), "python3", root+"/bindings/python/example.py", configFile, tokenFile, kid, digest)
	if !strings.Contains(out, "signed and verified") {
		t.Errorf("example.py prints %q", out)
	}
}

// createKey makes a key in a store through the engine.
func createKey(t *testing.T, s store, token string) string {
	t.Helper()
	k := coretest.Open(t, s.cfg, core.Options{})
	defer k.Close()
	session, err := k.OpenSession(token)
	if err != nil {
		t.Fatal(err)
	}
	r, err := coretest.Do[api.CreateResponse](k, session, "create",
		&api.CreateRequest{OpID: uuid.NewString(), Tenant: "acme", Purpose: "docs", Alg: "ed25519+ml-dsa-65"})
	if err != nil {
		t.Fatal(err)
	}
	return r.KID
}

func TestPython(t *testing.T) {
	t.Parallel()
	needs(t, "python3")
	s := newStore(t, "")
	out := outputEnv(t, pythonEnv(), "python3", "roundtrip.py", s.json, coretest.Passphrase, s.token(t, "acme"))
	if !strings.Contains(out, "Ran 6 tests") {
		t.Errorf("not all tests ran:\n%s", out)
	}
}
