// Package pack turns plain data into bytes and back, between processes of the same
// program. It is for data that crosses an exec while somebody waits: unlike
// encoding/json and encoding/gob it prepares nothing for a type, which takes longer
// than all the work there is for a value that is sent once.
//
// It is not for anything that is kept, or read by another version: fields have no
// names, only an order.
package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
)

// ErrInvalid is when bytes are not those of a value of the type.
var ErrInvalid = errors.New("not a packed value of this type")

// Marshal packs booleans, numbers and strings, and slices, pointers and structures
// (of exported fields) of them. An empty slice becomes nil. It panics for any
// other type.
func Marshal(v any) []byte { return encode(make([]byte, 0, 4096), reflect.ValueOf(v)) }

func encode(out []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(out, 1)
		}
		return append(out, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(out, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(out, v.Uint())
	case reflect.String:
		return append(binary.AppendUvarint(out, uint64(v.Len())), v.String()...)
	case reflect.Slice:
		out = binary.AppendUvarint(out, uint64(v.Len()))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append(out, v.Bytes()...)
		}
		for i := range v.Len() {
			out = encode(out, v.Index(i))
		}
		return out
	case reflect.Pointer:
		if v.IsNil() {
			return append(out, 0)
		}
		return encode(append(out, 1), v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			out = encode(out, v.Field(i))
		}
		return out
	}
	panic(fmt.Sprintf("pack: a value of %s", v.Type()))
}

// Unmarshal unpacks data into what into points to, a zero value. Nothing may be left
// over. It needs no more memory than a small multiple of len(data).
func Unmarshal(data []byte, into any) error {
	d := decoder{data}
	if err := d.decode(reflect.ValueOf(into).Elem()); err != nil {
		return err
	}
	if len(d.rest) > 0 {
		return ErrInvalid
	}
	return nil
}

type decoder struct{ rest []byte }

// take returns the next n bytes.
func (d *decoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.rest)) {
		return nil, ErrInvalid
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) uvarint() (uint64, error) {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		return 0, ErrInvalid
	}
	d.rest = d.rest[size:]
	return n, nil
}

// flag is a byte that is 0 or 1.
func (d *decoder) flag() (bool, error) {
	b, err := d.take(1)
	if err != nil || b[0] > 1 {
		return false, ErrInvalid
	}
	return b[0] == 1, nil
}

func (d *decoder) decode(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Bool:
		on, err := d.flag()
		v.SetBool(on)
		return err
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, size := binary.Varint(d.rest)
		if size <= 0 || v.OverflowInt(n) {
			return ErrInvalid
		}
		d.rest = d.rest[size:]
		v.SetInt(n)
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := d.uvarint()
		if err != nil || v.OverflowUint(n) {
			return ErrInvalid
		}
		v.SetUint(n)
		return nil
	case reflect.String:
		b, err := d.bytes()
		v.SetString(string(b))
		return err
	case reflect.Slice:
		return d.slice(v)
	case reflect.Pointer:
		there, err := d.flag()
		if err != nil || !there {
			return err
		}
		p := reflect.New(v.Type().Elem())
		v.Set(p)
		return d.decode(p.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if err := d.decode(v.Field(i)); err != nil {
				return err
			}
		}
		return nil
	}
	panic(fmt.Sprintf("pack: a value of %s", v.Type()))
}

func (d *decoder) bytes() ([]byte, error) {
	n, err := d.uvarint()
	if err != nil {
		return nil, err
	}
	return d.take(n)
}

func (d *decoder) slice(v reflect.Value) error {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		b, err := d.bytes()
		if len(b) > 0 {
			v.SetBytes(append([]byte(nil), b...))
		}
		return err
	}
	n, err := d.uvarint()
	if err != nil || n == 0 {
		return err
	}
	// Every element takes a byte at least.
	if n > uint64(len(d.rest)) {
		return ErrInvalid
	}
	s := reflect.MakeSlice(v.Type(), int(n), int(n))
	for i := range int(n) {
		if err := d.decode(s.Index(i)); err != nil {
			return err
		}
	}
	v.Set(s)
	return nil
}
