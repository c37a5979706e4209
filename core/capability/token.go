package capability

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gopkg.in/macaroon.v2"
)

// token is a parsed token: its form is right, its tags are not checked.
type token struct {
	macaroon *macaroon.Macaroon
	rootID   string
	issued   int64
	id       string // what ID of its Grant returns
}

// parseToken decodes the text of a token. It is strict where the macaroon
// library is lenient (other versions, JSON, trailing bytes, other encodings
// of a length, empty fields): each token has one text.
func parseToken(text string) (*token, *Refusal) {
	if text == "" {
		return nil, refuseMissing
	}
	if len(text) > MaxTokenBytes {
		return nil, refuseMalformed
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) == 0 || raw[0] != byte(macaroon.V2) {
		return nil, refuseMalformed
	}
	m := new(macaroon.Macaroon)
	if err := m.UnmarshalBinary(raw); err != nil {
		return nil, refuseMalformed
	}
	// The one check against all second spellings, base64's included: its
	// decoder skips line breaks and ignores spare bits.
	if again, err := encodeToken(m); err != nil || again != text {
		return nil, refuseMalformed
	}
	if m.Location() != Location || len(m.Caveats()) > MaxCaveats {
		return nil, refuseMalformed
	}
	for _, c := range m.Caveats() {
		if len(c.VerificationId) != 0 || c.Location != "" { // third-party
			return nil, refuseMalformed
		}
	}
	identifier := string(m.Id())
	rootID, issued, ok := parseIdentifier(identifier)
	if !ok {
		return nil, refuseMalformed
	}
	sum := sha256.Sum256([]byte(identifier))
	return &token{m, rootID, issued, "cap:" + hex.EncodeToString(sum[:8])}, nil
}

// encodeToken is the inverse of parseToken.
func encodeToken(m *macaroon.Macaroon) (string, error) {
	raw, err := m.MarshalBinary()
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

// caveatTexts returns copies of the caveats that share no memory with the
// token.
func (t *token) caveatTexts() []string {
	texts := make([]string, len(t.macaroon.Caveats()))
	for i, c := range t.macaroon.Caveats() {
		texts[i] = string(c.Id)
	}
	return texts
}

// Attenuate returns a token that is narrower than the given one by the given
// caveats, at least one. Any holder may call it: it needs no key and no
// server. It does not check whether the token is authentic, and it accepts
// caveats already in the token that this version does not know.
func Attenuate(text string, caveats ...Caveat) (string, error) {
	t, bad := parseToken(text)
	if bad != nil {
		return "", bad
	}
	if len(caveats) == 0 {
		// Most likely a slip, and its price is handing on the full power.
		return "", errors.New("capability: attenuate: no caveat given")
	}
	if len(t.macaroon.Caveats())+len(caveats) > MaxCaveats {
		return "", fmt.Errorf("capability: attenuate: more than %d caveats", MaxCaveats)
	}
	for _, c := range caveats {
		if c == (Caveat{}) {
			return "", errors.New("capability: attenuate: empty caveat")
		}
		if err := t.macaroon.AddFirstPartyCaveat([]byte(c.text)); err != nil {
			return "", fmt.Errorf("capability: attenuate: %w", err)
		}
	}
	narrower, err := encodeToken(t.macaroon)
	if err != nil {
		return "", fmt.Errorf("capability: attenuate: %w", err)
	}
	if len(narrower) > MaxTokenBytes {
		return "", fmt.Errorf("capability: attenuate: longer than %d bytes", MaxTokenBytes)
	}
	return narrower, nil
}

// Info is what a token says about itself. Nothing in it is verified: anybody
// can write such a token. It is for people to read, never to decide on, and
// has nothing that could be used as a token.
type Info struct {
	ID        string // as Grant.ID
	RootKeyID string
	Issued    time.Time // when it was minted, to the second
	// UnverifiedCaveats are the caveats in their order, as text; one that is
	// unknown or malformed is quoted as by strconv.QuoteToASCII, so that it
	// can not play tricks on a terminal.
	UnverifiedCaveats []string
	// Problem is the reason for which Verify would refuse the token even if
	// its signature is right, "" if there is none.
	Problem string
}

// Inspect reads a token without verifying it. It needs no key. Its errors are
// refusals with reason token-missing or token-malformed.
func Inspect(text string) (Info, error) {
	t, bad := parseToken(text)
	if bad != nil {
		return Info{}, bad
	}
	info := Info{ID: t.id, RootKeyID: t.rootID, Issued: time.Unix(t.issued, 0).UTC(), UnverifiedCaveats: t.caveatTexts()}
	if _, bad := conditions(info.UnverifiedCaveats); bad != nil {
		info.Problem = bad.Reason()
	}
	for i, text := range info.UnverifiedCaveats {
		if _, bad := parseCondition(text); bad != nil {
			info.UnverifiedCaveats[i] = strconv.QuoteToASCII(text)
		}
	}
	return info, nil
}
