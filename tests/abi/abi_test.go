// Package abi tests libronkms.so from the outside: it builds the library once,
// compiles C and C++ programs against include/ronkms.h, and runs them, and the
// Python module, on stores that the engine made.
package abi

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/coretest"
	"github.com/rustyonions/ron-kms/tests/skip"
)

const root = "../.." // of the repository

var (
	libDir  string // where libronkms.so is; empty if missing is not
	missing string // the tool without which there is no library
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	for _, tool := range []string{"sh", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
			return m.Run()
		}
	}
	dir, err := os.MkdirTemp("", "ronkms-abi-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("sh", root+"/capi/build.sh", dir).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "capi/build.sh: %v\n%s", err, out)
		return 1
	}
	libDir = dir
	return m.Run()
}

// sources looks at every file that the build script, the compilers and Python
// read: the go command sees what a test itself looks at and, unlike what its
// programs read, does not answer from its cache when that has changed.
var sources = sync.OnceValue(func() error {
	for _, dir := range []string{"include", "capi", "core", "audit", "backends", "bindings", "tests/abi"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			return err
		}
	}
	return nil
})

// needs skips if the library could not be built or a tool is missing.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	if missing != "" {
		skip.Skip(t, missing+" is not installed")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			skip.Skip(t, tool+" is not installed")
		}
	}
}

// compile makes a program of a C file and links it with the library.
func compile(t *testing.T, source string) string {
	t.Helper()
	needs(t)
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	output(t, "gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", root+"/include",
		source, "-o", program, "-L", libDir, "-lronkms", "-lpthread", "-ldl", "-Wl,-rpath,"+libDir)
	return program
}

// output runs a command that must succeed within a minute, and returns what it
// printed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	return outputEnv(t, nil, name, args...)
}

func outputEnv(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	killGroup(cmd)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", filepath.Base(name), err, out, stderr.String())
	}
	if stderr.Len() > 0 {
		t.Fatalf("%s wrote to standard error:\n%s", filepath.Base(name), stderr.String())
	}
	return string(out)
}

// killGroup makes the end of a command's time the end of its children too: one
// that hangs after fork would hold the output open.
func killGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// A store is a fresh durable store and how to open it from C.
type store struct {
	cfg  *config.Config
	json string // the configuration
	keys *core.TokenKeys
}

func newStore(t *testing.T, bind string) store {
	t.Helper()
	cfg := coretest.Config(t)
	coretest.Init(t, cfg)
	fields := map[string]any{
		"backend": "file", "dir": cfg.Dir, "arena_size": cfg.ArenaSize, "audit_segment_size": cfg.AuditSegmentSize,
	}
	if bind != "" {
		fields["bind"] = bind
	}
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := core.OpenTokenKeys(cfg.Dir, []byte(coretest.Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return store{cfg, string(text), keys}
}

func (s store) token(t *testing.T, tenant string, scopes ...string) string {
	t.Helper()
	return coretest.TokenFrom(t, s.keys, time.Now().Add(time.Hour), tenant, scopes)
}

// files writes the configuration, with its passphrase in a file, and a token
// to files, as the examples want them.
func (s store) files(t *testing.T, token string) (configFile, tokenFile string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(s.json), &fields); err != nil {
		t.Fatal(err)
	}
	fields["passphrase_file"] = write("passphrase", coretest.Passphrase)
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return write("config.json", string(text)), write("token", token)
}
