package trustedtime

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// kernelSync reads the state of the kernel's clock discipline, adjtimex(2) with
// no modes set.
func kernelSync() (synchronized bool, maxErrorMS int64, err error) {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return false, 0, fmt.Errorf("adjtimex: %w", err)
	}
	synchronized, maxErrorMS = discipline(state, &tx)
	return synchronized, maxErrorMS, nil
}

// discipline reads what adjtimex returned. The kernel sets STA_UNSYNC at boot, and
// again once nobody has adjusted the clock for so long that the bound of its
// error passes 16 s; TIME_ERROR covers that and faults of a reference clock.
// Maxerror is in microseconds.
func discipline(state int, tx *unix.Timex) (synchronized bool, maxErrorMS int64) {
	synchronized = state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0
	return synchronized, (int64(tx.Maxerror) + 999) / 1000
}
