package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/rustyonions/ron-kms/audit"
	"github.com/rustyonions/ron-kms/audit/notekey"
)

// auditFigures are those of the audit log alone. A writer waits for its record before it gives the next one.
func auditFigures() map[string]figure {
	all := map[string]figure{
		"audit.fdatasync": {"", "512 bytes over written blocks and fdatasync, one at a time, same disk"},
		"audit.open.10k":  {"", "10 thousand records of 1000 keys, closed cleanly"},
		"audit.open.10m":  {"audit.open.10k", "10 million records of 1000 keys, closed cleanly"},
	}
	for _, n := range auditWriters {
		all[appendName(n)] = figure{"audit.fdatasync", fmt.Sprintf("%d writers, one record of about 300 bytes at a time, "+
			"hybrid checkpoints and packing beside; value in records/s, percentiles in us", n)}
	}
	return all
}

var auditWriters = []int{1, 8, 64, 256}

func appendName(writers int) string { return fmt.Sprintf("audit.append.w%d", writers) }

const (
	auditRounds    = 10
	auditRound     = 200 * time.Millisecond // of each number of writers in each round
	auditKeys      = 1000
	auditOpenings  = 9
	auditPerCommit = 500
)

// measureAudit measures what is named. Rates are of whole rounds.
func measureAudit(samples map[string][]time.Duration, rates map[string]float64, wanted func(string) bool) (err error) {
	appends := false
	for _, n := range auditWriters {
		appends = appends || wanted(appendName(n))
	}
	opens := wanted("audit.open.10k") || wanted("audit.open.10m")
	if !appends && !opens && !wanted("audit.fdatasync") {
		return nil
	}
	if err := os.MkdirAll("build", 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("build", "bench-audit-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if appends || wanted("audit.fdatasync") {
		if err := measureAppends(dir, samples, rates, wanted); err != nil {
			return err
		}
	}
	if opens {
		return measureOpens(dir, samples)
	}
	return nil
}

// benchLog is what a store gives its log: hybrid keys, and a key for the MACs.
func benchLog() (audit.Options, error) {
	const origin = "ron-kms/audit/bench"
	seed := sha256.Sum256([]byte("bench"))
	classical := ed25519.NewKeyFromSeed(seed[:])
	public, pq := mldsa44.NewKeyFromSeed(&seed)
	e, err := notekey.NewEd25519(origin, classical.Public().(ed25519.PublicKey), func(msg []byte) ([]byte, error) {
		return ed25519.Sign(classical, msg), nil
	})
	if err != nil {
		return audit.Options{}, err
	}
	m, err := notekey.NewMLDSA44(origin, public.Bytes(), func(msg []byte) ([]byte, error) {
		sig := make([]byte, mldsa44.SignatureSize)
		return sig, mldsa44.SignTo(pq, msg, nil, true, sig)
	}, time.Now)
	if err != nil {
		return audit.Options{}, err
	}
	keys, err := notekey.NewSet(e.Verifier(), m.Verifier())
	return audit.Options{
		Origin: origin, Signers: []note.Signer{e, m}, Keys: keys, MACKey: func(use func([]byte)) { use(seed[:]) },
	}, err
}

func benchRecord(key string) *audit.Record {
	return &audit.Record{
		Kind: audit.KindOperation, Op: "sign", OpID: [16]byte{1}, Tenant: "bench", Key: key, KeyVersion: 1, Alg: "ed25519", Purpose: "signing",
		InputHash: [32]byte{1}, Result: "ok", Actor: "cap:0192d3a87c1e7000", Attestation: "software",
	}
}

func benchKey(i int) string {
	return fmt.Sprintf("bench/signing/ed25519/0192d3a8-7c1e-7000-8000-%012d", i%auditKeys)
}

func measureAppends(dir string, samples map[string][]time.Duration, rates map[string]float64, wanted func(string) bool) (err error) {
	o, err := benchLog()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "append")
	if err := audit.Create(path, o); err != nil {
		return err
	}
	l, err := audit.Open(context.Background(), path, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	raw, err := os.Create(filepath.Join(dir, "raw"))
	if err != nil {
		return err
	}
	defer raw.Close()
	const rawSize = 16 << 20
	if _, err := raw.Write(make([]byte, rawSize)); err != nil {
		return err
	}
	if err := raw.Sync(); err != nil {
		return err
	}
	spent, count := make(map[string]time.Duration), make(map[string]int)
	block, at := make([]byte, 512), int64(0)
	for range auditRounds {
		for range 100 {
			block[0]++
			start := time.Now()
			if _, err := raw.WriteAt(block, at); err != nil {
				return err
			}
			if err := unix.Fdatasync(int(raw.Fd())); err != nil {
				return err
			}
			samples["audit.fdatasync"] = append(samples["audit.fdatasync"], time.Since(start))
			at = (at + 512) % rawSize
		}
		for _, n := range auditWriters {
			name := appendName(n)
			if !wanted(name) {
				continue
			}
			took, took1, err := appendRound(l, n)
			if err != nil {
				return err
			}
			samples[name] = append(samples[name], took...)
			spent[name] += took1
			count[name] += len(took)
		}
	}
	for name, d := range spent {
		rates[name] = float64(count[name]) / d.Seconds()
	}
	return nil
}

// appendRound has n writers append for one round. It returns how long each append took, and all of it.
func appendRound(l *audit.Log, n int) (took []time.Duration, all time.Duration, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for w := range n {
		wg.Go(func() {
			key := benchKey(w)
			var mine []time.Duration
			var failed error
			for time.Since(start) < auditRound && failed == nil {
				at := time.Now()
				_, failed = l.Append(context.Background(), benchRecord(key))
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	return took, time.Since(start), err
}

// measureOpens opens two logs in turn.
func measureOpens(dir string, samples map[string][]time.Duration) error {
	o, err := benchLog()
	if err != nil {
		return err
	}
	logs := []struct {
		name string
		n    int
	}{{"audit.open.10k", 10_000}, {"audit.open.10m", 10_000_000}}
	for _, g := range logs {
		if err := fillLog(filepath.Join(dir, g.name), o, g.n); err != nil {
			return err
		}
	}
	for range auditOpenings {
		for _, g := range logs {
			start := time.Now()
			l, err := audit.Open(context.Background(), filepath.Join(dir, g.name), o)
			if err != nil {
				return err
			}
			samples[g.name] = append(samples[g.name], time.Since(start))
			if l.Size() < uint64(g.n) {
				return fmt.Errorf("%s: %d records", g.name, l.Size())
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillLog makes a log of n records.
func fillLog(path string, o audit.Options, n int) error {
	if err := audit.Create(path, o); err != nil {
		return err
	}
	l, err := audit.Open(context.Background(), path, o)
	if err != nil {
		return err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Go(func() {
			recs := make([]*audit.Record, auditPerCommit)
			for errs[w] == nil {
				from := int(next.Add(auditPerCommit)) - auditPerCommit
				if from >= n {
					return
				}
				for i := range recs {
					recs[i] = benchRecord(benchKey(from + i))
				}
				_, errs[w] = l.Append(context.Background(), recs...)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, l.Close())...)
}
