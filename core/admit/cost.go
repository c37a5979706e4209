package admit

import "fmt"

// Work is what a cost is looked up by.
type Work struct {
	Verb   string // of the verb table
	Family string // of the algorithm; "" for any
}

// Costs are units by work. One unit is about an Ed25519 signature.
type Costs map[Work]int

// DefaultCosts are from docs/performance.md: how long an operation takes through
// the engine, beside an Ed25519 signature, as a mean rather than a median: ML-DSA
// signs until it is content. What changes keys also waits for the disk.
func DefaultCosts() Costs {
	return Costs{
		{"sign", "ed25519"}: 1, {"sign", "ml-dsa"}: 5, {"sign", "hybrid"}: 6, {"sign", ""}: 6,
		{"verify", "ed25519"}: 3, {"verify", "ml-dsa"}: 1, {"verify", "hybrid"}: 3, {"verify", ""}: 3,
		{"wrap", "aead"}: 2, {"wrap", "ml-kem"}: 3, {"wrap", "x25519"}: 6, {"wrap", "hybrid"}: 6, {"wrap", ""}: 6,
		{"unwrap", "aead"}: 1, {"unwrap", "ml-kem"}: 7, {"unwrap", "x25519"}: 5, {"unwrap", "hybrid"}: 8, {"unwrap", ""}: 8,
		{"rewrap", "aead"}: 3, {"rewrap", ""}: 14,
		{"derive", ""}: 10, {"create", ""}: 10, {"rotate", ""}: 10, {"destroy", ""}: 10,
	}
}

// Of is the cost of a verb with a key of a family: of that pair, else of the
// verb, else 1.
func (c Costs) Of(verb, family string) int {
	if n, ok := c[Work{verb, family}]; ok {
		return n
	}
	if n, ok := c[Work{verb, ""}]; ok {
		return n
	}
	return 1
}

// Validate says which cost is not 1 to MaxCost.
func (c Costs) Validate() error {
	for w, n := range c {
		if n < 1 || n > MaxCost {
			return fmt.Errorf("admit: cost of %s %s is %d: want 1 to %d", w.Verb, w.Family, n, MaxCost)
		}
	}
	return nil
}
