package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// makeLog makes a log of some records in a directory and closes it.
func makeLog(t *testing.T, o Options, n int) (dir string, size uint64) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	l, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, l, n)
	mustAppend(t, l, &Record{Kind: KindIntent, Op: "create", Key: "open"})
	at := mustAppend(t, l, &Record{Kind: KindIntent, Op: "create", Key: "made"})
	mustAppend(t, l, &Record{Kind: KindOperation, Op: "create", Key: "made", Ref: at[0].Index + 1, Result: ResultOK})
	mustClose(t, l)
	return dir, l.Size()
}

// contentsOf reads all files of a directory.
func contentsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

// Inspect says what Open would say, tells what the intact part knows, and leaves every byte as it was. R-413.
func TestInspect(t *testing.T) {
	t.Parallel()
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// flip changes a bit of the place where text stands.
	flip := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(b, []byte(text))
			if at < 0 {
				t.Fatalf("%s has no %q", name, text)
			}
			b[at] ^= 1
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name    string
		harm    func(*testing.T, string)
		verdict Verdict
		some    bool // the records at the start are right
		read    bool // all can be told, one way or another
	}{
		{"nothing", func(*testing.T, string) {}, "", true, true},
		{"no directory", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, VerdictMissing, false, false},
		{"no snapshot, no format", func(t *testing.T, dir string) {
			remove(snapshotFile)(t, dir)
			remove(formatFile)(t, dir)
		}, VerdictMissing, false, true},
		{"no format", remove(formatFile), VerdictMissing, false, true},
		{"no head", remove(headFile), VerdictMissing, false, true},
		{"no snapshot", remove(snapshotFile), VerdictMissing, false, true},
		{"no format, no ring", func(t *testing.T, dir string) {
			remove(formatFile)(t, dir)
			for n := range 3 {
				remove(segmentName(n))(t, dir)
			}
		}, VerdictMissing, false, true},
		{"no format, no snapshot, no ring", func(t *testing.T, dir string) {
			remove(formatFile)(t, dir)
			remove(snapshotFile)(t, dir)
			for n := range 3 {
				remove(segmentName(n))(t, dir)
			}
		}, VerdictMissing, false, true},
		{"no format, no tiles", func(t *testing.T, dir string) {
			remove(formatFile)(t, dir)
			remove("level-0")(t, dir)
		}, VerdictMissing, false, true},
		{"no format, no tiles, and an altered frame", func(t *testing.T, dir string) {
			remove(formatFile)(t, dir)
			remove("level-0")(t, dir)
			flip(segmentName(0), "acme")(t, dir)
		}, VerdictMissing, false, false},
		{"format", flip(formatFile, "audit log"), VerdictFormat, false, true},
		{"snapshot", flip(snapshotFile, "RKAS"), VerdictSnapshot, false, true},
		{"a packed record", flip("data-00000000", "acme"), VerdictTampered, false, true},
		{"a checkpoint", flip(checkpointsName(0), testOrigin), VerdictCheckpoint, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t)
			dir, size := makeLog(t, o, 20)
			tt.harm(t, dir)
			var before map[string]string
			if tt.name != "no directory" {
				before = contentsOf(t, dir)
			}
			next, seen := uint64(0), uint64(0)
			f, err := Inspect(context.Background(), dir, o, func(i uint64, _ *Record) error {
				if i < next {
					t.Errorf("record %d comes after %d", i, next-1)
				}
				next = i + 1
				seen++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			got := Verdict("")
			if f.Refused != nil {
				got = f.Refused.Verdict
			}
			if got != tt.verdict || f.Size() > seen || tt.some != (f.Size() > 0) {
				t.Errorf("%q, %d of %d records (%v)", got, f.Size(), seen, f.Refused)
			}
			// What one place has lost, the ring still has.
			if tt.read != (seen == size) {
				t.Errorf("%d of %d records were told", seen, size)
			}
			if before != nil && !maps.Equal(before, contentsOf(t, dir)) {
				t.Error("Inspect changed a file")
			}
			if tt.verdict == "" {
				if _, _, effect := f.Key("made"); f.Size() != size || f.Effects() != 1 || effect == 0 || len(f.Pending()) != 1 {
					t.Errorf("%d of %d records, %d effects, %d pending", f.Size(), size, f.Effects(), len(f.Pending()))
				}
				if sum := sha256.Sum256([]byte(before[checkpointFile])); f.CheckpointHash != sum || f.Report.CheckpointSize != size {
					t.Errorf("checkpoint over %d records", f.Report.CheckpointSize)
				}
			}
			l, err := Open(context.Background(), dir, o)
			if err == nil {
				mustClose(t, l)
			}
			// What lies before the snapshot is for Verify and for the scrubber to find.
			if early := (tt.some || tt.verdict == VerdictTampered) && err == nil; verdict(err) != tt.verdict && !early {
				t.Errorf("Open says %v", err)
			}
		})
	}
}

// Of packed records whose end is damaged, and that nothing else holds any more, whole bundles are told.
func TestInspectBehindADamagedEdge(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, size := makeLog(t, o, 200)
	for name := range contentsOf(t, dir) {
		if name == formatFile || strings.HasPrefix(name, segmentPrefix) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(dir, "data-00000000")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[lastNonZero(b)-20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Inspect(context.Background(), dir, o, nil)
	if err != nil || f.Refused == nil || f.Later != size/256*256 || size < 257 {
		t.Errorf("%d of %d records were told, %v", f.Later, size, err)
	}
}

// A log that was put back as a whole is right by itself: its anchor tells, and Inspect leaves the anchor as it is..
func TestInspectAsksTheAnchors(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := testOptions(t)
	dir, _ := makeLog(t, o, 3)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	anchorDir := t.TempDir()
	anchored := func(fresh bool) Options {
		a, err := NewDirAnchor(anchorDir, o.MACKey)
		if err != nil {
			t.Fatal(err)
		}
		o := o
		o.Anchors = []AnchorOption{{Anchor: a, Mode: AnchorCheckpoint, Fresh: fresh}}
		return o
	}
	l, err := Open(ctx, dir, anchored(true))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	before := contentsOf(t, anchorDir)
	f, err := Inspect(ctx, dir, anchored(false), nil)
	if err != nil || f.Refused != nil {
		t.Fatalf("%+v, %v", f, err)
	}
	f, err = Inspect(ctx, old, anchored(false), nil)
	if err != nil || f.Refused == nil || f.Refused.Verdict != VerdictStale || f.Anchors["dir:"+anchorDir] != l.Size() {
		t.Errorf("%+v, %v", f, err)
	}
	if !maps.Equal(before, contentsOf(t, anchorDir)) {
		t.Error("Inspect wrote the anchor")
	}
}

// What a mirror has behind the end of a log that was put back is told too..
func TestInspectReadsMirrors(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := testOptions(t)
	dir, _ := makeLog(t, o, 3)
	mirrorDir := t.TempDir()
	with := func(fresh bool) Options {
		a, err := NewDirAnchor(mirrorDir, o.MACKey)
		if err != nil {
			t.Fatal(err)
		}
		o := o
		o.Anchors = []AnchorOption{{Anchor: a, Mode: AnchorMirror, Fresh: fresh}}
		return o
	}
	l, err := Open(ctx, dir, with(true))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, operation("before", 1))
	size := l.Size()
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, operation("after", 1))
	mustClose(t, l)
	told := false
	f, err := Inspect(ctx, old, with(false), func(i uint64, r *Record) error {
		told = told || r.Key == "after" && i >= size
		return nil
	})
	if err != nil || f.Refused == nil || f.Refused.Verdict != VerdictStale || f.Size() != size || !f.Mirrored || !told || f.Later == 0 {
		t.Errorf("%+v, %v; told %t", f, err, told)
	}
	if l, err = Open(ctx, old, with(false)); err != nil { // which takes it back
		t.Fatal(err)
	}
	mustClose(t, l)
}

// Other keys than the log's are a finding; the records are still read, because the MAC key bears them out. With another MAC key too,
// nothing is believed.
func TestInspectWithOtherKeys(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	dir, size := makeLog(t, o, 3)
	o.Keys, _ = keysNumbered(t, 1)
	f, err := Inspect(context.Background(), dir, o, nil)
	if err != nil || f.Refused == nil || f.Refused.Verdict != VerdictFormat || f.Size() != size {
		t.Errorf("%+v, %v", f, err)
	}
	o.MACKey = func(use func([]byte)) { use(bytes.Repeat([]byte{1}, 32)) }
	if f, err = Inspect(context.Background(), dir, o, nil); err != nil || f.Refused == nil || f.Size() != 0 {
		t.Errorf("%+v, %v", f, err)
	}
}

// A log that takes the place of another says so in its second record, before anything else. R-413.
func TestSucceed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := testOptions(t)
	dir := filepath.Join(t.TempDir(), "next")
	accepted := &Record{Kind: KindRecovery, Op: "accepted", Count: 7, Detail: []byte("why")}
	size, err := Succeed(ctx, dir, o, accepted, func(l *Log) error {
		mustAppend(t, l, operation("k", 1))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(ctx, dir, VerifyOptions{Keys: o.Keys, MACKey: o.MACKey, OnRecord: func(i uint64, r *Record) error {
		if (i == 1) != (r.Kind == KindRecovery) || i == 1 && (r.Op != "accepted" || string(r.Detail) != "why") {
			t.Errorf("record %d is %s %s", i, r.Kind, r.Op)
		}
		return nil
	}})
	if err != nil || rep.Size != size || !rep.Clean || rep.Ops["sign"]["ok"] != 1 {
		t.Errorf("%+v, %v; %d records", rep, err, size)
	}
	if _, err := Succeed(ctx, dir, o, accepted, func(*Log) error { return nil }); !errors.Is(err, ErrExists) {
		t.Errorf("over another log: %v", err)
	}
	failed := errors.New("failed")
	if _, err := Succeed(ctx, filepath.Join(t.TempDir(), "x"), o, accepted, func(*Log) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a log that could not be filled: %v", err)
	}
}

// Only an anchor of an earlier log of the same store is put away, whole and under another name.
func TestSetAsideAnchor(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	old, now := [16]byte{1}, [16]byte{2}
	other := func(use func([]byte)) { use(bytes.Repeat([]byte{1}, 32)) }
	for _, tt := range []struct {
		name string
		of   [16]byte
		key  func(func([]byte))
		done bool
		err  bool
	}{
		{"of the log that was given up", old, testMAC, true, false},
		{"of the present log", now, testMAC, false, false},
		{"of another store", old, other, false, true},
	} {
		dir := t.TempDir()
		a, err := NewDirAnchor(dir, tt.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Write(ctx, AnchorState{Log: tt.of, Size: 5}), a.Close()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "mirror-00000007"), []byte("frames"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := contentsOf(t, dir)
		done, err := SetAsideAnchor(ctx, dir, now, ".aside", testMAC)
		if done != tt.done || (err != nil) != tt.err {
			t.Errorf("%s: %t, %v", tt.name, done, err)
		}
		want := before
		if tt.done {
			want = make(map[string]string)
			for name, b := range before {
				want[name+".aside"] = b
			}
		}
		if after := contentsOf(t, dir); len(after) != 2 || !maps.Equal(after, want) {
			t.Errorf("%s: %v", tt.name, slices.Collect(maps.Keys(after)))
		}
	}
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if done, err := SetAsideAnchor(ctx, dir, now, ".aside", testMAC); done || err != nil {
			t.Errorf("nothing there: %t, %v", done, err)
		}
	}
}
