package varlink

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// Params reads the parameters of a call by their exact names. A getter returns
// nil for a parameter that is absent or null; the first one that is missing
// though required, or of the wrong type, is kept, and Done reports it. So a
// handler reads all it knows and then asks Done once. It is for one goroutine.
type Params struct {
	raw  map[string]json.RawMessage
	used map[string]struct{}
	bad  string
}

func newParams(raw map[string]json.RawMessage) *Params {
	return &Params{raw: raw, used: make(map[string]struct{}, len(raw))}
}

// Invalid marks the parameter as against a rule.
func (p *Params) Invalid(name string) {
	if p.bad == "" {
		p.bad = name
	}
}

// Done returns an InvalidParameter error for the first bad parameter, or for
// one that nobody has read: this method has none of that name.
func (p *Params) Done() error {
	if p.bad != "" {
		return InvalidParameter(p.bad)
	}
	for name := range p.raw {
		if _, ok := p.used[name]; !ok {
			return InvalidParameter(name)
		}
	}
	return nil
}

// Raw returns the JSON text of a parameter, nil when absent or null.
func (p *Params) Raw(name string) json.RawMessage {
	value, ok := p.raw[name]
	if !ok {
		return nil
	}
	p.used[name] = struct{}{}
	if bytes.Equal(value, []byte("null")) {
		return nil
	}
	return value
}

// Required marks a parameter as missing when it is absent or null.
func (p *Params) Required(name string) {
	if p.Raw(name) == nil {
		p.Invalid(name)
	}
}

func read[T any](p *Params, name string) *T {
	raw := p.Raw(name)
	if raw == nil {
		return nil
	}
	value := new(T)
	if json.Unmarshal(raw, value) != nil {
		p.Invalid(name)
		return nil
	}
	return value
}

// String returns a string without NUL bytes.
func (p *Params) String(name string) *string {
	s := read[string](p, name)
	if s != nil && strings.IndexByte(*s, 0) >= 0 {
		p.Invalid(name)
		return nil
	}
	return s
}

// RequiredString is String for a parameter that must be there.
func (p *Params) RequiredString(name string) string {
	p.Required(name)
	if s := p.String(name); s != nil {
		return *s
	}
	return ""
}

// Bool returns a boolean.
func (p *Params) Bool(name string) *bool { return read[bool](p, name) }

// Flag is Bool with absent as false.
func (p *Params) Flag(name string) bool {
	b := p.Bool(name)
	return b != nil && *b
}

// Strings returns an array of strings without NUL bytes; nil when absent.
func (p *Params) Strings(name string) []string {
	list := read[[]string](p, name)
	if list == nil {
		return nil
	}
	for _, s := range *list {
		if strings.IndexByte(s, 0) >= 0 {
			p.Invalid(name)
			return nil
		}
	}
	return *list
}

// Int returns an integer; a decimal string is taken too, as sd-json does.
func (p *Params) Int(name string) *int64 {
	raw := p.Raw(name)
	if raw == nil {
		return nil
	}
	n, ok := parseInt(raw)
	if !ok {
		p.Invalid(name)
		return nil
	}
	return &n
}

// Uint64 returns an integer of the whole unsigned range.
func (p *Params) Uint64(name string) *uint64 {
	raw := p.Raw(name)
	if raw == nil {
		return nil
	}
	n, err := strconv.ParseUint(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil {
		p.Invalid(name)
		return nil
	}
	return &n
}

// Uint32 returns an integer between 0 and 2^32-1.
func (p *Params) Uint32(name string) *uint32 {
	n := p.Int(name)
	if n == nil {
		return nil
	}
	if *n < 0 || *n > math.MaxUint32 {
		p.Invalid(name)
		return nil
	}
	u := uint32(*n)
	return &u
}

// Ints returns an array of integers; nil when absent.
func (p *Params) Ints(name string) []int64 {
	list := read[[]json.RawMessage](p, name)
	if list == nil {
		return nil
	}
	out := make([]int64, 0, len(*list))
	for _, raw := range *list {
		n, ok := parseInt(raw)
		if !ok {
			p.Invalid(name)
			return nil
		}
		out = append(out, n)
	}
	return out
}

// Object returns the parameters within an object parameter; nil when absent.
// What is bad in it counts as name being bad; ask its Done.
func (p *Params) Object(name string) *Params {
	fields := read[map[string]json.RawMessage](p, name)
	if fields == nil {
		return nil
	}
	return newParams(*fields)
}

// Objects is Object for an array of objects.
func (p *Params) Objects(name string) []*Params {
	list := read[[]map[string]json.RawMessage](p, name)
	if list == nil {
		return nil
	}
	out := make([]*Params, 0, len(*list))
	for _, fields := range *list {
		out = append(out, newParams(fields))
	}
	return out
}

func parseInt(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	return n, err == nil
}
