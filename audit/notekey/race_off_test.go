//go:build !race

package notekey

// stride is how many bytes of a long signature one stands for in tests of every byte.
const stride = 1
