package policy

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const maxDepth = 8 // of arrays and objects

var (
	errJSON  = errors.New("the JSON is not well-formed, has a name twice, one that is not known, or a value of a wrong type")
	errNull  = errors.New("null is not a value here: leave the field out")
	errDepth = errors.New("the JSON is nested too deeply")
)

// decode reads one JSON value into v: unknown names, names given twice, null,
// other spellings of names and data after the value are refused. A refused
// text leaves v half-filled. Errors do not repeat the text.
func decode(text []byte, v any) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(text))
	for {
		tok, err := d.ReadToken()
		switch {
		case errors.Is(err, io.EOF):
			if json.Unmarshal(text, v, json.RejectUnknownMembers(true)) != nil {
				return errJSON
			}
			return nil
		case err != nil:
			return errJSON
		case tok.Kind() == 'n':
			return errNull // the decoder takes it for an absent field, so for an absent condition
		case d.StackDepth() > maxDepth:
			return errDepth
		}
	}
}
