//go:build race

package audit

// flipStep thins out the exhaustive tests, which the race detector slows down and learns nothing from.
const flipStep = 11
