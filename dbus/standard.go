package dbus

import (
	"context"
	"os"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

const (
	peerInterface       = "org.freedesktop.DBus.Peer"
	introspectInterface = "org.freedesktop.DBus.Introspectable"
	propertiesInterface = "org.freedesktop.DBus.Properties"
)

// found is the object that a call is for.
type found struct {
	interfaces []*Interface
	object     any
	children   *Children
	implicit   bool // a path that only leads to others
}

// lookup finds the object at path; nil when there is none. Paths on the way to
// an object exist too, without an interface of their own.
func (t *Tree) lookup(ctx context.Context, c *Call) (*found, error) {
	path := string(c.Path)
	t.mu.Lock()
	n := t.nodes[path]
	implicit := false
	var parent *node
	if n == nil {
		if i := strings.LastIndexByte(path, '/'); i > 0 {
			parent = t.nodes[path[:i]]
		}
		prefix := strings.TrimSuffix(path, "/") + "/"
		for p := range t.nodes {
			implicit = implicit || strings.HasPrefix(p, prefix)
		}
	}
	t.mu.Unlock()
	switch {
	case n != nil:
		return &found{interfaces: n.interfaces, object: n.object, children: n.children, implicit: n.children != nil}, nil
	case parent != nil && parent.children != nil:
		object, err := parent.children.Find(ctx, c, path[strings.LastIndexByte(path, '/')+1:])
		if err != nil {
			return nil, err
		}
		if object != nil {
			return &found{interfaces: parent.children.Interfaces, object: object}, nil
		}
	case implicit:
		return &found{implicit: true}, nil
	}
	return nil, nil
}

// find returns the method for a call, and the object to hand to it.
func (t *Tree) find(ctx context.Context, c *Call) (*Method, any, error) {
	if c.Interface == peerInterface {
		if m := peer.methods[c.Member]; m != nil {
			return m, nil, nil
		}
		return nil, nil, Errorf(ErrorUnknownMethod, "Unknown method '%s' on interface '%s'.", c.Member, c.Interface)
	}
	f, err := t.lookup(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if f == nil {
		return nil, nil, Errorf(ErrorUnknownObject, "Unknown object '%s'.", c.Path)
	}
	for _, i := range append([]*Interface{introspectable, properties}, f.interfaces...) {
		if c.Interface != "" && c.Interface != i.Name {
			continue
		}
		m := i.methods[c.Member]
		if m == nil {
			continue
		}
		if i == introspectable || i == properties {
			if f.implicit && f.children == nil && i == properties {
				break
			}
			return m, f, nil
		}
		c.Interface = i.Name
		return m, f.object, nil
	}
	if f.implicit && f.children == nil && c.Interface != introspectInterface {
		return nil, nil, Errorf(ErrorUnknownObject, "Unknown object '%s'.", c.Path)
	}
	return nil, nil, Errorf(ErrorUnknownMethod, "Unknown method %s or interface %s.", c.Member, c.Interface)
}

var peer = indexed(&Interface{
	Name: peerInterface,
	Methods: []Method{
		{Name: "Ping", Handler: func(context.Context, *Call, any) ([]any, error) { return nil, nil }},
		{Name: "GetMachineId", Out: Args("s machine_uuid"), Handler: machineID},
	},
})

var introspectable = indexed(&Interface{
	Name: introspectInterface,
	Methods: []Method{{Name: "Introspect", Out: Args("s xml_data"),
		Handler: func(ctx context.Context, c *Call, object any) ([]any, error) {
			return []any{c.tree.introspect(ctx, string(c.Path), object.(*found))}, nil
		}}},
})

var properties = indexed(&Interface{
	Name: propertiesInterface,
	Methods: []Method{
		{Name: "Get", In: Args("s interface_name", "s property_name"), Out: Args("v value"), Handler: getProperty},
		{Name: "GetAll", In: Args("s interface_name"), Out: Args("a{sv} props"), Handler: getAllProperties},
		{Name: "Set", In: Args("s interface_name", "s property_name", "v value"), Handler: setProperty},
	},
})

func indexed(i *Interface) *Interface {
	i.index()
	return i
}

func machineID(context.Context, *Call, any) ([]any, error) {
	data, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return nil, err
	}
	return []any{strings.TrimSpace(string(data))}, nil
}

func (f *found) property(iface, name string) *Property {
	for _, i := range f.interfaces {
		if iface == "" || i.Name == iface {
			if p := i.properties[name]; p != nil {
				return p
			}
		}
	}
	return nil
}

func getProperty(ctx context.Context, c *Call, object any) ([]any, error) {
	f := object.(*found)
	p := f.property(c.String(0), c.String(1))
	if p == nil {
		return nil, unknownProperty(c)
	}
	value, err := p.variant(ctx, f.object)
	if err != nil {
		return nil, err
	}
	return []any{value}, nil
}

func unknownProperty(c *Call) error {
	return Errorf(ErrorUnknownProperty, "Unknown interface %s or property %s.", c.String(0), c.String(1))
}

func (p *Property) variant(ctx context.Context, object any) (godbus.Variant, error) {
	value, err := p.Get(ctx, object)
	if err != nil {
		return godbus.Variant{}, err
	}
	v := godbus.MakeVariant(value)
	if v.Signature().String() != p.Type {
		return v, Errorf(ErrorFailed, "internal error: property %s has type %s, not %s", p.Name, v.Signature(), p.Type)
	}
	return v, nil
}

// orderedProperties goes over the bus as a{sv}, in its own order: a struct and a
// dict entry look the same there, and clients show properties as they come.
type orderedProperties []propertyValue

type propertyValue struct {
	Name  string
	Value godbus.Variant
}

// OrderedStrings goes over the bus as a{ss}, in its own order, as orderedProperties does.
type OrderedStrings []StringEntry

// StringEntry is one entry of OrderedStrings.
type StringEntry struct{ Key, Value string }

func getAllProperties(ctx context.Context, c *Call, object any) ([]any, error) {
	f := object.(*found)
	out := orderedProperties{}
	known := false
	for _, i := range f.interfaces {
		if name := c.String(0); name != "" && i.Name != name {
			continue
		}
		known = true
		for n := range i.Properties {
			p := &i.Properties[n]
			taken := func(one propertyValue) bool { return one.Name == p.Name }
			if p.Hidden || slices.ContainsFunc(out, taken) {
				continue
			}
			v, err := p.variant(ctx, f.object)
			if err != nil {
				return nil, err
			}
			out = append(out, propertyValue{p.Name, v})
		}
	}
	if !known && !standardName(c.String(0)) {
		return nil, Errorf(ErrorUnknownInterface, "Unknown interface '%s'.", c.String(0))
	}
	return []any{out}, nil
}

func standardName(name string) bool {
	return name == "" || name == peerInterface || name == introspectInterface || name == propertiesInterface
}

func setProperty(ctx context.Context, c *Call, object any) ([]any, error) {
	f := object.(*found)
	p := f.property(c.String(0), c.String(1))
	if p == nil {
		return nil, unknownProperty(c)
	}
	if p.Set == nil {
		return nil, Errorf(ErrorPropertyReadOnly, "Property '%s' is not writable.", c.String(1))
	}
	value, _ := c.Args[2].(godbus.Variant)
	if got := value.Signature().String(); got != p.Type {
		return nil, Errorf(ErrorInvalidArgs, "Incorrect parameters for property '%s', expected '%s', got '%s'.", c.String(1), p.Type, got)
	}
	return nil, p.Set(ctx, c, f.object, value)
}
