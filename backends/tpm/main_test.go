package tpm

import (
	"testing"

	"go.uber.org/goleak"
)

// Nothing runs on after the anchors are closed.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
