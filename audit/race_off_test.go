//go:build !race

package audit

// flipStep is 1: every byte.
const flipStep = 1
