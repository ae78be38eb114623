package dbus

import (
	"fmt"
	"reflect"

	godbus "github.com/godbus/dbus/v5"
)

// Typed returns a variant of the same D-Bus value whose Go value has the types
// of its signature throughout. godbus decodes a structure as []any, which it
// would encode as an array of variants: a variant that is passed on to another
// service must be typed first.
func Typed(v godbus.Variant) (godbus.Variant, error) {
	sig := v.Signature().String()
	typ, rest, err := goType(sig)
	if err != nil {
		return v, err
	}
	if rest != "" {
		return v, fmt.Errorf("type %q of variant is not a single one", sig)
	}
	value, err := convert(reflect.ValueOf(v.Value()), typ)
	if err != nil {
		return v, err
	}
	return godbus.MakeVariant(value.Interface()), nil
}

var basicTypes = map[byte]reflect.Type{
	'y': reflect.TypeFor[byte](), 'b': reflect.TypeFor[bool](),
	'n': reflect.TypeFor[int16](), 'q': reflect.TypeFor[uint16](),
	'i': reflect.TypeFor[int32](), 'u': reflect.TypeFor[uint32](),
	'x': reflect.TypeFor[int64](), 't': reflect.TypeFor[uint64](),
	'd': reflect.TypeFor[float64](), 's': reflect.TypeFor[string](),
	'o': reflect.TypeFor[godbus.ObjectPath](), 'g': reflect.TypeFor[godbus.Signature](),
	'h': reflect.TypeFor[godbus.UnixFD](), 'v': reflect.TypeFor[godbus.Variant](),
}

// goType returns the Go type of the first complete type in a signature.
func goType(sig string) (typ reflect.Type, rest string, err error) {
	bad := fmt.Errorf("type %q is no D-Bus type", sig)
	if sig == "" {
		return nil, "", bad
	}
	if t, ok := basicTypes[sig[0]]; ok {
		return t, sig[1:], nil
	}
	switch {
	case len(sig) > 2 && sig[:2] == "a{":
		key, rest, err := goType(sig[2:])
		if err != nil || !key.Comparable() {
			return nil, "", bad
		}
		value, rest, err := goType(rest)
		if err != nil || rest == "" || rest[0] != '}' {
			return nil, "", bad
		}
		return reflect.MapOf(key, value), rest[1:], nil
	case sig[0] == 'a':
		elem, rest, err := goType(sig[1:])
		if err != nil {
			return nil, "", err
		}
		return reflect.SliceOf(elem), rest, nil
	case sig[0] == '(':
		var fields []reflect.StructField
		rest := sig[1:]
		for rest != "" && rest[0] != ')' {
			var t reflect.Type
			if t, rest, err = goType(rest); err != nil {
				return nil, "", err
			}
			fields = append(fields, reflect.StructField{Name: fmt.Sprintf("F%d", len(fields)), Type: t})
		}
		if rest == "" || fields == nil {
			return nil, "", bad
		}
		return reflect.StructOf(fields), rest[1:], nil
	}
	return nil, "", bad
}

func convert(v reflect.Value, typ reflect.Type) (reflect.Value, error) {
	mismatch := func() error { return fmt.Errorf("value does not have type %s", typ) }
	for v.IsValid() && v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() {
		return v, mismatch()
	}
	if inner, ok := v.Interface().(godbus.Variant); ok && typ == basicTypes['v'] {
		out, err := Typed(inner)
		return reflect.ValueOf(out), err
	}
	if v.Type() == typ {
		return v, nil
	}
	switch {
	case typ.Kind() == reflect.Slice && v.Kind() == reflect.Slice:
		out := reflect.MakeSlice(typ, v.Len(), v.Len())
		for i := range v.Len() {
			e, err := convert(v.Index(i), typ.Elem())
			if err != nil {
				return v, err
			}
			out.Index(i).Set(e)
		}
		return out, nil
	case typ.Kind() == reflect.Map && v.Kind() == reflect.Map:
		out := reflect.MakeMapWithSize(typ, v.Len())
		for it := v.MapRange(); it.Next(); {
			key, err := convert(it.Key(), typ.Key())
			if err != nil {
				return v, err
			}
			value, err := convert(it.Value(), typ.Elem())
			if err != nil {
				return v, err
			}
			out.SetMapIndex(key, value)
		}
		return out, nil
	case typ.Kind() == reflect.Struct && v.Kind() == reflect.Slice && v.Len() == typ.NumField():
		out := reflect.New(typ).Elem()
		for i := range v.Len() {
			f, err := convert(v.Index(i), typ.Field(i).Type)
			if err != nil {
				return v, err
			}
			out.Field(i).Set(f)
		}
		return out, nil
	}
	return v, mismatch()
}
