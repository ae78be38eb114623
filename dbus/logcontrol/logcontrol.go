// Package logcontrol serves org.freedesktop.LogControl1(5), by which
// systemctl service-log-level and service-log-target change what a running
// daemon logs. It knows of no other object.
package logcontrol

import (
	"context"
	"io"
	"os"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"

	"machined/dbus"
)

// Path is the object that has the interface.
const Path godbus.ObjectPath = "/org/freedesktop/LogControl1"

// levels are the names of org.freedesktop.LogControl1(5) beside logrus'
// levels; the first name of a level is the one that is reported.
var levels = []struct {
	name  string
	level logrus.Level
}{
	{"debug", logrus.DebugLevel}, {"info", logrus.InfoLevel}, {"notice", logrus.InfoLevel},
	{"warning", logrus.WarnLevel}, {"err", logrus.ErrorLevel}, {"crit", logrus.FatalLevel},
	{"alert", logrus.FatalLevel}, {"emerg", logrus.PanicLevel},
}

// Config says whose log is controlled.
type Config struct {
	Log        logrus.FieldLogger
	Identifier string // syslog identifier: the name of stock's program
	OwnUID     uint32 // may change it, as root may
}

// control is the log of one daemon.
type control struct{ log *logrus.Logger }

// Interface makes the interface for the object at Path.
func Interface(cfg Config) *dbus.Interface {
	c := control{log: logger(cfg.Log)}
	property := func(name string, get func() string, set func(string) error) dbus.Property {
		p := dbus.Property{Name: name, Type: "s", Emits: dbus.EmitsFalse, Privileged: set != nil,
			Get: func(context.Context, any) (any, error) { return get(), nil }}
		if set != nil {
			p.Set = func(ctx context.Context, call *dbus.Call, _ any, value godbus.Variant) error {
				creds, err := call.Credentials(ctx)
				if err != nil {
					return err
				}
				if creds.UID != 0 && creds.UID != cfg.OwnUID {
					return dbus.Errorf(dbus.ErrorAccessDenied, "Access to property %s is denied", name)
				}
				text, _ := value.Value().(string)
				return set(text)
			}
		}
		return p
	}
	return &dbus.Interface{Name: "org.freedesktop.LogControl1", Properties: []dbus.Property{
		property("LogLevel", c.level, c.setLevel),
		property("LogTarget", c.target, c.setTarget),
		property("SyslogIdentifier", func() string { return cfg.Identifier }, nil),
	}}
}

// logger finds the logger behind what is logged to.
func logger(log logrus.FieldLogger) *logrus.Logger {
	switch l := log.(type) {
	case *logrus.Entry:
		return l.Logger
	case *logrus.Logger:
		return l
	}
	return logrus.StandardLogger()
}

// ordinaryTarget is where the log goes if nobody redirects it.
func ordinaryTarget() string {
	if os.Getenv("JOURNAL_STREAM") != "" {
		return "journal"
	}
	return "console"
}

func (c control) level() string {
	level := c.log.GetLevel()
	for _, row := range levels {
		if row.level == level {
			return row.name
		}
	}
	return "debug"
}

func (c control) setLevel(name string) error {
	for _, row := range levels {
		if row.name == name {
			c.log.SetLevel(row.level)
			return nil
		}
	}
	return dbus.Errorf(dbus.ErrorInvalidArgs, "Invalid log level '%.64s'", name)
}

func (c control) target() string {
	if c.log.Out == io.Discard {
		return "null"
	}
	return ordinaryTarget()
}

// setTarget knows two places: standard error, which is the journal under a
// service manager, and nowhere.
func (c control) setTarget(name string) error {
	switch name {
	case "null":
		c.log.SetOutput(io.Discard)
	case "auto", ordinaryTarget():
		c.log.SetOutput(os.Stderr)
	case "console", "console-prefixed", "journal", "journal-or-kmsg", "kmsg", "syslog", "syslog-or-kmsg":
		return dbus.Errorf(dbus.ErrorNotSupported, "Log target '%s' is not available", name)
	default:
		return dbus.Errorf(dbus.ErrorInvalidArgs, "Invalid log target '%.64s'", name)
	}
	return nil
}
