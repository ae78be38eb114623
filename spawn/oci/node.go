package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// node is a value of the file and where it stands in it, as in
// "process.rlimits[0].type".
type node struct {
	path  string
	value any
}

func (n node) errorf(format string, args ...any) error {
	if n.path == "" {
		return fmt.Errorf(format, args...)
	}
	return fmt.Errorf("%s: %s", n.path, fmt.Sprintf(format, args...))
}

// kind is what the value is, in the words of JSON.
func (n node) kind() string {
	switch v := n.value.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "a fraction"
		}
		return "a number"
	case []any:
		return "an array"
	default:
		return "an object"
	}
}

func (n node) wrong(want string) error { return n.errorf("is %s, must be %s", n.kind(), want) }

func (n node) field(name string, v any) node {
	if n.path == "" {
		return node{name, v}
	}
	return node{n.path + "." + name, v}
}

func (n node) text(to *string) error {
	s, ok := n.value.(string)
	if !ok {
		return n.wrong("a string")
	}
	if strings.ContainsRune(s, 0) {
		return n.errorf("has a NUL character")
	}
	*to = s
	return nil
}

// absolute is an absolute path, cleaned.
func (n node) absolute(to *string) error {
	if err := n.text(to); err != nil {
		return err
	}
	if !path.IsAbs(*to) {
		return n.errorf("%q is not an absolute path", *to)
	}
	*to = path.Clean(*to)
	return nil
}

func (n node) boolean(to *bool) error {
	b, ok := n.value.(bool)
	if !ok {
		return n.wrong("a boolean")
	}
	*to = b
	return nil
}

func (n node) integer(low, high int64) (int64, error) {
	v, ok := n.value.(json.Number)
	if !ok {
		return 0, n.wrong("an integer")
	}
	i, err := strconv.ParseInt(v.String(), 10, 64)
	if err != nil || i < low || i > high {
		return 0, n.errorf("%s is not an integer from %d to %d", v, low, high)
	}
	return i, nil
}

func (n node) unsigned(high uint64) (uint64, error) {
	v, ok := n.value.(json.Number)
	if !ok {
		return 0, n.wrong("an unsigned integer")
	}
	u, err := strconv.ParseUint(v.String(), 10, 64)
	if err != nil || u > high {
		return 0, n.errorf("%s is not an unsigned integer up to %d", v, high)
	}
	return u, nil
}

func (n node) array() ([]node, error) {
	list, ok := n.value.([]any)
	if !ok {
		return nil, n.wrong("an array")
	}
	out := make([]node, len(list))
	for i, v := range list {
		out[i] = node{fmt.Sprintf("%s[%d]", n.path, i), v}
	}
	return out, nil
}

// texts is an array of strings.
func (n node) texts(to *[]string) error {
	list, err := n.array()
	if err != nil {
		return err
	}
	out := make([]string, len(list))
	for i, e := range list {
		if err := e.text(&out[i]); err != nil {
			return err
		}
	}
	*to = out
	return nil
}

// each calls f for each member of an array.
func (n node) each(f func(node) error) error {
	list, err := n.array()
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// pairs is an object of strings, in the order of the names.
func (n node) pairs() ([]KeyValue, error) {
	object, ok := n.value.(map[string]any)
	if !ok {
		return nil, n.wrong("an object")
	}
	var out []KeyValue
	for _, key := range slices.Sorted(maps.Keys(object)) {
		var v string
		if key == "" {
			return nil, n.errorf("has an empty name")
		}
		if err := n.field(key, object[key]).text(&v); err != nil {
			return nil, err
		}
		out = append(out, KeyValue{key, v})
	}
	return out, nil
}

// table says what the members of an object are. A nil function takes anything
// and does nothing with it.
type table map[string]func(node) error

// object takes an object apart. Members that nobody knows are refused: what they
// ask for would not be there.
func (n node) object(t table, required ...string) error {
	object, ok := n.value.(map[string]any)
	if !ok {
		return n.wrong("an object")
	}
	for _, name := range required {
		if _, ok := object[name]; !ok {
			return n.errorf("%q is missing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		f, known := t[name]
		if !known {
			return n.field(name, nil).errorf("no such element is known here")
		}
		if f == nil {
			continue
		}
		if err := f(n.field(name, object[name])); err != nil {
			return err
		}
	}
	return nil
}

// unsupported is for what the specification knows and a machine cannot have.
func unsupported(n node) error { return n.errorf("is not supported") }
