package audit

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "audit")
			o := testOptions(b)
			o.SegmentSize, o.CheckpointInterval, o.CheckpointRecords, o.Heartbeat = 0, 0, 0, 0
			if err := Create(dir, o); err != nil {
				b.Fatal(err)
			}
			l, err := Open(context.Background(), dir, o)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					key := fmt.Sprint("acme/signing/ed25519/0192d3a8-7c1e-7000-8000-00000000000", w)
					for left.Add(-1) >= 0 {
						if _, err := l.Append(context.Background(), operation(key, 1)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			mustClose(b, l)
		})
	}
}
