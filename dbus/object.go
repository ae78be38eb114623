package dbus

import (
	"context"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// Arg is one argument of a method or signal.
type Arg struct{ Name, Type string }

// Args makes arguments from "type name" strings; the name may be missing.
func Args(specs ...string) []Arg {
	out := make([]Arg, len(specs))
	for i, spec := range specs {
		typ, name, _ := strings.Cut(spec, " ")
		out[i] = Arg{Name: name, Type: typ}
	}
	return out
}

func signature(args []Arg) string {
	var b strings.Builder
	for _, arg := range args {
		b.WriteString(arg.Type)
	}
	return b.String()
}

// Handler answers one call to an object. The values must have the types of the
// method's out arguments; an *os.File stands for a descriptor, and is closed
// when the reply is sent. ctx ends when the caller leaves the bus.
type Handler func(ctx context.Context, c *Call, object any) ([]any, error)

// Method is one row of an interface.
type Method struct {
	Name       string
	In, Out    []Arg
	Privileged bool // introspection says org.freedesktop.systemd1.Privileged
	Deprecated bool
	Handler    Handler
	Quick      Quick // may be nil; only for objects of Tree.Add
}

// Emits says what a property tells about its changes, as the annotation
// org.freedesktop.DBus.Property.EmitsChangedSignal does.
type Emits string

// The kinds of properties that we have: none ever sends PropertiesChanged.
const (
	EmitsConst Emits = "const"
	EmitsFalse Emits = "false"
)

// Property is one property of an interface. Set is nil for one that can't be
// written.
type Property struct {
	Name       string
	Type       string
	Emits      Emits
	Privileged bool
	Hidden     bool // answered by Get, but neither introspected nor in GetAll
	Get        func(ctx context.Context, object any) (any, error)
	Set        func(ctx context.Context, c *Call, object any, value godbus.Variant) error
}

// Signal is one signal of an interface, for introspection.
type Signal struct {
	Name string
	Args []Arg
}

// Interface is a table of methods, properties and signals.
type Interface struct {
	Name       string
	Methods    []Method
	Properties []Property
	Signals    []Signal
	Hidden     bool // not introspected

	methods    map[string]*Method
	properties map[string]*Property
}

func (i *Interface) index() {
	i.methods = make(map[string]*Method, len(i.Methods))
	for n := range i.Methods {
		i.methods[i.Methods[n].Name] = &i.Methods[n]
	}
	i.properties = make(map[string]*Property, len(i.Properties))
	for n := range i.Properties {
		i.properties[i.Properties[n].Name] = &i.Properties[n]
	}
}

// Children are objects below one path that come and go.
type Children struct {
	Interfaces []*Interface
	// Find returns the object whose last path element is label, nil when there is none.
	Find func(ctx context.Context, c *Call, label string) (any, error)
	// List returns the labels of all objects, for introspection of the parent.
	List func(ctx context.Context) []string
}

// node is what the tree knows of one path.
type node struct {
	interfaces []*Interface
	object     any
	children   *Children
}
