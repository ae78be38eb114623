package varlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// request is one call as it stands on the wire.
type request struct {
	method     string
	parameters map[string]json.RawMessage
	more       bool
	oneway     bool
	upgrade    bool
}

var errNoMethod = errors.New("parse varlink call: no method")

// parseRequest parses one message without its NUL. A message that it refuses
// breaks the protocol, so the connection is to be closed, as sd-varlink does.
func parseRequest(data []byte) (request, error) {
	var req request
	if !utf8.Valid(data) {
		return req, errors.New("parse varlink call: not UTF-8")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return req, fmt.Errorf("parse varlink call: %w", err)
	}
	for key, value := range fields {
		var err error
		switch key {
		case "method":
			err = json.Unmarshal(value, &req.method)
		case "parameters":
			err = json.Unmarshal(value, &req.parameters)
		case "more":
			err = json.Unmarshal(value, &req.more)
		case "oneway":
			err = json.Unmarshal(value, &req.oneway)
		case "upgrade":
			err = json.Unmarshal(value, &req.upgrade)
		default:
			err = errors.New("no such field")
		}
		if err != nil {
			return req, fmt.Errorf("parse varlink call: field %q: %w", key, err)
		}
	}
	if req.method == "" {
		return req, errNoMethod
	}
	if req.oneway && req.more {
		return req, errors.New("parse varlink call: both oneway and more")
	}
	return req, nil
}

// splitMethod cuts a qualified method name into interface and method.
func splitMethod(qualified string) (iface, method string) {
	i := strings.LastIndexByte(qualified, '.')
	if i < 0 {
		return "", qualified
	}
	return qualified[:i], qualified[i+1:]
}

// reply is one answer as it stands on the wire.
type reply struct {
	Error      string `json:"error,omitempty"`
	Parameters any    `json:"parameters"`
	Continues  bool   `json:"continues,omitempty"`
}

type empty struct{}

// encode returns the message with its NUL.
func (r reply) encode() ([]byte, error) {
	if r.Parameters == nil {
		r.Parameters = empty{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encode varlink reply: %w", err)
	}
	out := b.Bytes()
	out[len(out)-1] = 0 // the encoder's newline
	return out, nil
}
