package server

import (
	"context"
	"io"
	"os"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"

	"machined/dbus"
)

// logLevels are the names of org.freedesktop.LogControl1(5) beside logrus'
// levels; the first name of a level is the one that is reported.
var logLevels = []struct {
	name  string
	level logrus.Level
}{
	{"debug", logrus.DebugLevel}, {"info", logrus.InfoLevel}, {"notice", logrus.InfoLevel},
	{"warning", logrus.WarnLevel}, {"err", logrus.ErrorLevel}, {"crit", logrus.FatalLevel},
	{"alert", logrus.FatalLevel}, {"emerg", logrus.PanicLevel},
}

// logger finds the logger behind what we log to.
func (s *Server) logger() *logrus.Logger {
	switch log := s.log.(type) {
	case *logrus.Entry:
		return log.Logger
	case *logrus.Logger:
		return log
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

func (s *Server) logControlInterface() *dbus.Interface {
	property := func(name string, get func() string, set func(string) error) dbus.Property {
		p := dbus.Property{Name: name, Type: "s", Emits: dbus.EmitsFalse, Privileged: set != nil,
			Get: func(context.Context, any) (any, error) { return get(), nil }}
		if set != nil {
			p.Set = func(ctx context.Context, c *dbus.Call, _ any, value godbus.Variant) error {
				creds, err := c.Credentials(ctx)
				if err != nil {
					return err
				}
				if creds.UID != 0 && creds.UID != s.ownUID {
					return dbus.Errorf(dbus.ErrorAccessDenied, "Access to property %s is denied", name)
				}
				text, _ := value.Value().(string)
				return set(text)
			}
		}
		return p
	}
	return &dbus.Interface{Name: "org.freedesktop.LogControl1", Properties: []dbus.Property{
		property("LogLevel", s.logLevel, s.setLogLevel),
		property("LogTarget", s.logTarget, s.setLogTarget),
		property("SyslogIdentifier", func() string { return "systemd-machined" }, nil),
	}}
}

func (s *Server) logLevel() string {
	level := s.logger().GetLevel()
	for _, row := range logLevels {
		if row.level == level {
			return row.name
		}
	}
	return "debug"
}

func (s *Server) setLogLevel(name string) error {
	for _, row := range logLevels {
		if row.name == name {
			s.logger().SetLevel(row.level)
			return nil
		}
	}
	return invalid("Invalid log level '%.64s'", name)
}

func (s *Server) logTarget() string {
	if s.logger().Out == io.Discard {
		return "null"
	}
	return ordinaryTarget()
}

// setLogTarget knows two places: standard error, which is the journal under a
// service manager, and nowhere.
func (s *Server) setLogTarget(name string) error {
	switch name {
	case "null":
		s.logger().SetOutput(io.Discard)
	case "auto", ordinaryTarget():
		s.logger().SetOutput(os.Stderr)
	case "console", "console-prefixed", "journal", "journal-or-kmsg", "kmsg", "syslog", "syslog-or-kmsg":
		return notSupported("Log target '%s' is not available", name)
	default:
		return invalid("Invalid log target '%.64s'", name)
	}
	return nil
}
