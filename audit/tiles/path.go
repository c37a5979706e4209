package tiles

import (
	"fmt"
	"strconv"
	"strings"
)

// maxIndex bounds tile numbers: what they count ends below 1<<64.
const maxIndex = 1<<56 - 1

// Path returns the name of a tile, or of a bundle if level is Entries, in C2SP tlog-tiles: tile/<L>/<N>[.p/<W>] or
// tile/entries/<N>[.p/<W>]. A width below Width makes it partial.
func Path(level int, n uint64, width int) string {
	number := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		number = fmt.Sprintf("x%03d/%s", n%1000, number)
	}
	kind := "entries"
	if level != Entries {
		kind = strconv.Itoa(level)
	}
	name := "tile/" + kind + "/" + number
	if width < Width {
		name += ".p/" + strconv.Itoa(width)
	}
	return name
}

// ParsePath is the inverse of Path for levels 0 to 63 and Entries, numbers below 1<<56 and widths 1 to Width. It accepts
// no other spelling of a name.
func ParsePath(name string) (level int, n uint64, width int, err error) {
	bad := fmt.Errorf("audit: tiles: %.80q is not the name of a tile or bundle", name)
	kind, number, ok := strings.Cut(strings.TrimPrefix(name, "tile/"), "/")
	if !ok {
		return 0, 0, 0, bad
	}
	level = Entries
	if kind != "entries" {
		if level, err = strconv.Atoi(kind); err != nil || level < 0 || level > 63 {
			return 0, 0, 0, bad
		}
	}
	number, partial, ok := strings.Cut(number, ".p/")
	width = Width
	if ok {
		if width, err = strconv.Atoi(partial); err != nil || width < 1 || width >= Width {
			return 0, 0, 0, bad
		}
	}
	for part := range strings.SplitSeq(number, "/") {
		digits, err := strconv.ParseUint(strings.TrimPrefix(part, "x"), 10, 64)
		if err != nil || digits > 999 || n > maxIndex/1000 {
			return 0, 0, 0, bad
		}
		n = n*1000 + digits
	}
	// Whatever was too lenient above does not come back.
	if n > maxIndex || Path(level, n, width) != name {
		return 0, 0, 0, bad
	}
	return level, n, width, nil
}
