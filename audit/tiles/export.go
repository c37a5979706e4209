package tiles

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Export gives write each file of the layout of C2SP tlog-tiles for a log of the first size records of src, once: first the
// bundles, then the tiles, level after level, under the names of Path. The checkpoint is for the caller to add. What was
// pruned is left out, and so is what has, which may be nil, says is there. Progress, which may be nil, is told after each file
// how many of how many are done.
//
// Nothing is checked here: who reads the export does that against the root of a checkpoint.
func Export(ctx context.Context, src Source, size uint64, has func(name string) bool, write func(name string, data []byte) error, progress func(done, total uint64)) error {
	var done, total uint64
	for level := Entries; level < levels; level++ {
		total += files(level, size)
	}
	pruned := true // so far
	for level := Entries; level < levels; level++ {
		for n := range files(level, size) {
			if err := ctx.Err(); err != nil {
				return err
			}
			width := int(min(Width, size>>(height*max(level, 0))-n*Width))
			name := Path(level, n, width)
			if has == nil || !has(name) {
				b, err := src.ReadTile(name)
				switch {
				case errors.Is(err, ErrPruned):
				case level == Entries && pruned && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotFound):
				case err != nil:
					return err
				default:
					if err := write(name, b); err != nil {
						return fmt.Errorf("audit: tiles: export: %w", err)
					}
					pruned = false
				}
			}
			if done++; progress != nil {
				progress(done, total)
			}
		}
	}
	return nil
}

// files returns how many tiles or bundles a level of a log of size records has, the partial one included.
func files(level int, size uint64) uint64 {
	count := size >> (height * max(level, 0))
	if count%Width != 0 {
		return count/Width + 1
	}
	return count / Width
}
