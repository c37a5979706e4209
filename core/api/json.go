package api

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Decode reads one JSON object into v, strictly: unknown and duplicate names,
// names in the wrong case, null, invalid UTF-8, data after the object, deep
// nesting and too many tokens are refused. The caller bounds the size of data.
// Its error is an *Error with code BadRequest and does not repeat the input.
func Decode(data []byte, v any) error {
	if err := scan(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v, json.RejectUnknownMembers(true)); err != nil {
		return NewError(ReasonJSON, jsonProblem(err))
	}
	return nil
}

// scan walks the tokens once before any of them reaches a struct: the decoder
// alone would accept null everywhere and has no limit on depth or count.
func scan(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(data))
	for n := 0; ; n++ {
		tok, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return NewError(ReasonJSON, "body is empty; send a JSON object")
			}
			return nil
		}
		if err != nil {
			return NewError(ReasonJSON, jsonProblem(err))
		}
		switch {
		case n == 0 && tok.Kind() != '{':
			return NewError(ReasonJSON, "body must be a JSON object")
		case n > 0 && d.StackDepth() == 0 && tok.Kind() != '}':
			return NewError(ReasonJSON, "data after the JSON object")
		case tok.Kind() == 'n':
			return NewError(ReasonJSON, "null is not a value here; leave the field out")
		case d.StackDepth() > MaxJSONDepth:
			return NewError(ReasonTooMany, "JSON is nested too deeply")
		case n >= MaxJSONTokens:
			return NewError(ReasonTooMany, "JSON has too many values")
		}
		if d.StackDepth() == 0 && d.InputOffset() < int64(len(data)) {
			if len(bytes.TrimLeft(data[d.InputOffset():], " \t\r\n")) > 0 {
				return NewError(ReasonJSON, "data after the JSON object")
			}
		}
	}
}

// jsonProblem names the kind of fault and never the input.
func jsonProblem(err error) string {
	var syn *jsontext.SyntacticError
	var sem *json.SemanticError
	switch {
	case errors.Is(err, json.ErrUnknownName):
		return "JSON has a field that this request does not know (names are case-sensitive)"
	case errors.Is(err, jsontext.ErrDuplicateName):
		return "JSON has the same field twice"
	case errors.As(err, &syn):
		return "JSON syntax is wrong"
	case errors.As(err, &sem):
		return "JSON has a field of the wrong type or size"
	}
	return "JSON cannot be read"
}

// Encode prints v as JSON, deterministically.
func Encode(v any) ([]byte, error) { return json.Marshal(v, json.Deterministic(true)) }
