// Package receipts tests that the four implementations of docs/spec/receipts.md
// do the same: it drives the one in Go, and programs made of those in C, Python
// and Rust, through the scenarios and files of docs/vectors/receipts.json, and
// lets each read what the others wrote.
package receipts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/bindings/go/receipts"
	"github.com/rustyonions/ron-kms/tests/skip"
)

const root = "../.." // of the repository

// buildDir is where the programs of all tests are.
var buildDir string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ronkms-receipts-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	buildDir = dir
	return m.Run()
}

// A peer does a command on its book and answers with a word.
type peer interface {
	do(t *testing.T, fields ...string) string
	finish(t *testing.T) // orderly; finds what the sanitizers find at the end, leaks too
	stop()               // without saving, as a kill does
}

// languages are the implementations, each with what starts a peer.
var languages = map[string]func(t *testing.T) peer{
	"go":     func(*testing.T) peer { return &goPeer{marks: make(map[string]receipts.Mark)} },
	"c":      func(t *testing.T) peer { return start(t, cProgram, "gcc") },
	"python": func(t *testing.T) peer { return start(t, pythonProgram, "python3") },
	"rust":   func(t *testing.T) peer { return start(t, rustProgram, "cargo") },
}

// sources looks at every file that the compilers and Python read: the go
// command sees what a test itself looks at and, unlike what its programs read,
// does not answer from its cache when that has changed.
var sources = sync.OnceValue(func() error {
	for _, dir := range []string{"bindings", "tests/receipts"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			return err
		}
	}
	return nil
})

// goPeerWord is the word for what a command returned.
func goPeerWord(command string, err error) string {
	var rollback *receipts.RollbackError
	var changed *receipts.LogChangedError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &rollback):
		return "rollback:" + string(rollback.Reason)
	case errors.As(err, &changed):
		return "log-changed"
	case errors.Is(err, receipts.ErrInvalid):
		return "invalid"
	case errors.Is(err, receipts.ErrCorrupt):
		return "corrupt"
	case errors.Is(err, receipts.ErrLocked):
		return "locked"
	case command == "create" && errors.Is(err, fs.ErrExist):
		return "exists"
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	default:
		return "file error"
	}
}

// goPeer is the implementation in Go, in this process.
type goPeer struct {
	book  *receipts.Book
	marks map[string]receipts.Mark
}

func (p *goPeer) do(t *testing.T, f ...string) string {
	t.Helper()
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var err error
	switch f[0] {
	case "create", "open":
		var b *receipts.Book
		o := receipts.Options{MaxKeys: int(number(f[2]))}
		if f[0] == "create" {
			b, err = receipts.Create(f[1], o)
		} else {
			b, err = receipts.Open(f[1], o)
		}
		if err == nil {
			p.book = b
		}
	case "mark":
		p.marks[f[1]] = p.book.Mark()
	case "check":
		err = p.book.Check(p.marks[f[1]], f[2],
			receipts.Receipt{Log: f[3], LogIndex: number(f[4]), KeySeq: number(f[5]), CheckpointSize: number(f[6])})
	case "accept":
		err = p.book.Accept(f[1])
	case "forget":
		err = p.book.Forget(f[1])
	case "save":
		err = p.book.Save()
	case "close":
		if p.book != nil {
			err = p.book.Close()
		}
		p.book = nil
	default:
		t.Fatalf("command %q", f)
	}
	return goPeerWord(f[0], err)
}

func (p *goPeer) finish(t *testing.T) { expect(t, p, "ok", "close") }

func (p *goPeer) stop() {
	if p.book != nil {
		p.book.Close()
	}
}

// program is an implementation in a process of its own.
type program struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *strings.Builder
}

// start starts what build made, or skips the test if a tool is not there.
func start(t *testing.T, build func() ([]string, error), tools ...string) peer {
	t.Helper()
	skip.Without(t, tools...)
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	args, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p := &program{cmd: exec.CommandContext(ctx, args[0], args[1:]...), cancel: cancel, stderr: new(strings.Builder)}
	p.cmd.Env = append(os.Environ(), pythonEnv()...)
	p.cmd.Stderr = p.stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

func (p *program) do(t *testing.T, f ...string) string {
	t.Helper()
	if _, err := io.WriteString(p.in, strings.Join(f, "\t")+"\n"); err != nil {
		t.Fatalf("%q: %v", f, err)
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		p.stop()
		t.Fatalf("%q: %v\n%s", f, err, p.stderr)
	}
	return strings.TrimSuffix(answer, "\n")
}

func (p *program) finish(t *testing.T) {
	t.Helper()
	p.in.Close()
	if err := p.cmd.Wait(); err != nil || p.stderr.Len() > 0 {
		t.Errorf("at the end: %v\n%s", err, p.stderr)
	}
	p.cancel()
}

func (p *program) stop() {
	p.cancel()
	p.cmd.Wait()
}

func pythonEnv() []string {
	return []string{"PYTHONPATH=" + root + "/bindings/python", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1"}
}

func pythonProgram() ([]string, error) {
	return []string{"python3", "-W", "error", "drive/drive.py"}, nil
}

// cProgram compiles the C implementation with what finds its mistakes.
var cProgram = sync.OnceValues(func() ([]string, error) {
	flags := []string{"-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"}
	sanitizers := []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all"}
	probe := exec.Command("gcc", append(sanitizers, "-x", "c", "-", "-o", filepath.Join(buildDir, "probe"))...)
	probe.Stdin = strings.NewReader("int main(void) { return 0; }")
	if probe.Run() == nil && exec.Command(filepath.Join(buildDir, "probe")).Run() == nil {
		flags = append(flags, sanitizers...)
	}
	name := filepath.Join(buildDir, "drive-c")
	return []string{name}, tool("gcc", append(flags, "-I", root+"/bindings/c", root+"/bindings/c/ronkms_receipts.c",
		"drive/drive.c", "-o", name)...)
})

var rustProgram = sync.OnceValues(func() ([]string, error) {
	return []string{filepath.Join(buildDir, "rust/debug/examples/drive")}, cargo("build", "--example", "drive")
})

func cargo(command string, args ...string) error {
	return tool("cargo", append([]string{command, "--quiet", "--offline", "--locked", "--target-dir", filepath.Join(buildDir, "rust"),
		"--manifest-path", root + "/bindings/rust/ronkms-receipts/Cargo.toml"}, args...)...)
}

// tool runs a command that must succeed within two minutes.
func tool(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), pythonEnv()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
