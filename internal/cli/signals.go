package cli

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The real-time signals of the C library (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// SignalName is the name of a signal without SIG, as stock lists it.
func SignalName(n int) string {
	switch {
	case n >= sigRTMin && n <= sigRTMax:
		return fmt.Sprintf("RTMIN+%d", n-sigRTMin)
	case n == int(unix.SIGIO):
		return "IO"
	case n == int(unix.SIGABRT):
		return "ABRT"
	case n == int(unix.SIGCHLD):
		return "CHLD"
	}
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(n)
}

// ParseSignal reads a signal by name, with or without SIG, or by number.
func ParseSignal(s string) (int32, error) {
	fail := Failf("Failed to parse signal string \"%s\".", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fail
		}
		return int32(n), nil
	}
	name := strings.TrimPrefix(s, "SIG")
	for n := 1; n <= sigRTMax; n++ {
		if SignalName(n) == name {
			return int32(n), nil
		}
	}
	switch name {
	case "CLD":
		return int32(unix.SIGCHLD), nil
	case "POLL":
		return int32(unix.SIGIO), nil
	case "IOT":
		return int32(unix.SIGABRT), nil
	case "RTMIN":
		return sigRTMin, nil
	case "RTMAX":
		return sigRTMax, nil
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= sigRTMax-sigRTMin {
			return int32(sigRTMax - n), nil
		}
	}
	return 0, fail
}
