//go:build race

package tiles

// slower divides the rounds of tests that the race detector makes slow.
const slower = 10
