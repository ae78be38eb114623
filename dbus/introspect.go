package dbus

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// introspectHead is the document's head and the standard interfaces, byte for
// byte as sd-bus writes them, so that recorded documents can be compared.
const introspectHead = `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
"https://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId">
   <arg type="s" name="machine_uuid" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect">
   <arg name="xml_data" type="s" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg name="interface_name" direction="in" type="s"/>
   <arg name="property_name" direction="in" type="s"/>
   <arg name="value" direction="out" type="v"/>
  </method>
  <method name="GetAll">
   <arg name="interface_name" direction="in" type="s"/>
   <arg name="props" direction="out" type="a{sv}"/>
  </method>
  <method name="Set">
   <arg name="interface_name" direction="in" type="s"/>
   <arg name="property_name" direction="in" type="s"/>
   <arg name="value" direction="in" type="v"/>
  </method>
  <signal name="PropertiesChanged">
   <arg type="s" name="interface_name"/>
   <arg type="a{sv}" name="changed_properties"/>
   <arg type="as" name="invalidated_properties"/>
  </signal>
 </interface>
`

func (t *Tree) introspect(ctx context.Context, path string, f *found) string {
	var b strings.Builder
	b.WriteString(introspectHead)
	for _, i := range f.interfaces {
		if !i.Hidden {
			i.introspect(&b)
		}
	}
	for _, child := range t.childNames(ctx, path, f) {
		fmt.Fprintf(&b, " <node name=\"%s\"/>\n", child)
	}
	b.WriteString("</node>\n")
	return b.String()
}

// childNames are the labels one level below path.
func (t *Tree) childNames(ctx context.Context, path string, f *found) []string {
	var names []string
	prefix := strings.TrimSuffix(path, "/") + "/"
	t.mu.Lock()
	for p := range t.nodes {
		if rest, ok := strings.CutPrefix(p, prefix); ok && rest != "" {
			label, _, _ := strings.Cut(rest, "/")
			names = append(names, label)
		}
	}
	t.mu.Unlock()
	if f.children != nil && f.children.List != nil {
		names = append(names, f.children.List(ctx)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (i *Interface) introspect(b *strings.Builder) {
	fmt.Fprintf(b, " <interface name=\"%s\">\n", i.Name)
	for n := range i.Properties {
		p := &i.Properties[n]
		if p.Hidden {
			continue
		}
		access := "read"
		if p.Set != nil {
			access = "readwrite"
		}
		fmt.Fprintf(b, "  <property name=\"%s\" type=\"%s\" access=\"%s\">\n", p.Name, p.Type, access)
		if p.Emits != "" {
			fmt.Fprintf(b, "   <annotation name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"%s\"/>\n", p.Emits)
		}
		if p.Privileged {
			b.WriteString("   <annotation name=\"org.freedesktop.systemd1.Privileged\" value=\"true\"/>\n")
		}
		b.WriteString("  </property>\n")
	}
	for n := range i.Methods {
		m := &i.Methods[n]
		fmt.Fprintf(b, "  <method name=\"%s\">\n", m.Name)
		writeArgs(b, m.In, "in")
		writeArgs(b, m.Out, "out")
		if m.Deprecated {
			b.WriteString("   <annotation name=\"org.freedesktop.DBus.Deprecated\" value=\"true\"/>\n")
		}
		if m.Privileged {
			b.WriteString("   <annotation name=\"org.freedesktop.systemd1.Privileged\" value=\"true\"/>\n")
		}
		b.WriteString("  </method>\n")
	}
	for _, s := range i.Signals {
		fmt.Fprintf(b, "  <signal name=\"%s\">\n", s.Name)
		writeArgs(b, s.Args, "")
		b.WriteString("  </signal>\n")
	}
	b.WriteString(" </interface>\n")
}

func writeArgs(b *strings.Builder, args []Arg, direction string) {
	for _, arg := range args {
		fmt.Fprintf(b, "   <arg type=\"%s\"", arg.Type)
		if arg.Name != "" {
			fmt.Fprintf(b, " name=\"%s\"", arg.Name)
		}
		if direction != "" {
			fmt.Fprintf(b, " direction=\"%s\"", direction)
		}
		b.WriteString("/>\n")
	}
}
