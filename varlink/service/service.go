// Package service serves the varlink interface io.systemd.service, which all
// services of systemd offer beside their own: whether the service answers, how
// much it logs, and its environment.
package service

import (
	"context"
	"os"

	"github.com/sirupsen/logrus"

	"machined/varlink"
)

// levels are those of syslog(3), 0 to 7, as logrus has them.
var levels = [...]logrus.Level{
	logrus.FatalLevel, logrus.FatalLevel, logrus.FatalLevel, logrus.ErrorLevel,
	logrus.WarnLevel, logrus.InfoLevel, logrus.InfoLevel, logrus.DebugLevel,
}

// Config says whose service it is.
type Config struct {
	Log    logrus.FieldLogger // its level changes by SetLogLevel
	OwnUID uint32             // may do what root may
}

// Interface makes the interface.
func Interface(cfg Config) varlink.Interface {
	privileged := func(call *varlink.Call) error {
		if err := call.Params.Done(); err != nil {
			return err
		}
		if call.Peer.UID != 0 && call.Peer.UID != cfg.OwnUID {
			return varlink.NewError(varlink.ErrorPermissionDenied)
		}
		return nil
	}
	method := func(h varlink.Handler) varlink.Method { return varlink.Method{Handler: h} }
	return varlink.Interface{
		Name:        "io.systemd.service",
		Description: description,
		Methods: map[string]varlink.Method{
			"Ping": method(func(_ context.Context, call *varlink.Call) (any, error) {
				return nil, call.Params.Done()
			}),
			"SetLogLevel": method(func(_ context.Context, call *varlink.Call) (any, error) {
				call.Params.Required("level")
				level := call.Params.Int("level")
				if level != nil && (*level < 0 || *level >= int64(len(levels))) {
					call.Params.Invalid("level")
				}
				if err := privileged(call); err != nil {
					return nil, err
				}
				if logger := loggerOf(cfg.Log); logger != nil {
					logger.SetLevel(levels[*level])
				}
				return nil, nil
			}),
			"GetEnvironment": method(func(_ context.Context, call *varlink.Call) (any, error) {
				if err := privileged(call); err != nil {
					return nil, err
				}
				return map[string][]string{"environment": os.Environ()}, nil
			}),
		},
	}
}

func loggerOf(log logrus.FieldLogger) *logrus.Logger {
	switch l := log.(type) {
	case *logrus.Logger:
		return l
	case *logrus.Entry:
		return l.Logger
	}
	return nil
}

const description = `# What all services of systemd offer.
interface io.systemd.service

# Does nothing, but shows that the service answers.
method Ping() -> ()

# Sets the log level, 0 (emergencies) to 7 (debugging).
method SetLogLevel(
	level: int
) -> ()

# Returns the environment block of the service.
method GetEnvironment() -> (
	environment: ?[]string
)
`
