//go:build race

package notekey

// stride is how many bytes of a long signature one stands for in tests of every byte. The race detector makes each check of a
// signature twenty times as slow, and finds nothing in a second one.
const stride = 32
