package machine

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

func (s *Services) serviceInterface() varlink.Interface {
	return varlink.Interface{
		Name:        "io.systemd.service",
		Description: serviceIDL,
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
				if err := call.Params.Done(); err != nil {
					return nil, err
				}
				if !s.privileged(call) {
					return nil, varlink.NewError(varlink.ErrorPermissionDenied)
				}
				if logger := loggerOf(s.log); logger != nil {
					logger.SetLevel(levels[*level])
				}
				return nil, nil
			}),
			"GetEnvironment": method(func(_ context.Context, call *varlink.Call) (any, error) {
				if err := call.Params.Done(); err != nil {
					return nil, err
				}
				if !s.privileged(call) {
					return nil, varlink.NewError(varlink.ErrorPermissionDenied)
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

const serviceIDL = `# What all services of systemd offer.
interface io.systemd.service

# Does nothing, but shows that the service answers.
method Ping()

# Sets the log level, 0 (emergencies) to 7 (debugging).
method SetLogLevel(
	level: int
)

# Returns the environment block of the service.
method GetEnvironment() -> (
	environment: ?[]string
)

# The environment can't be shown.
error InconsistentEnvironment()
`
