package cli

import (
	"context"
	"fmt"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// JobWatch follows the jobs of the service manager. It must be opened before
// the jobs are made, so that none ends unseen.
type JobWatch struct {
	bus     *Bus
	signals chan *godbus.Signal
}

// WatchJobs subscribes to the ends of jobs.
func (b *Bus) WatchJobs(ctx context.Context) (*JobWatch, error) {
	if err := b.Call(ctx, Systemd, "Subscribe", nil); err != nil && !strings.HasSuffix(ErrorName(err), ".AlreadySubscribed") {
		return nil, Because("Could not watch jobs", err)
	}
	// Larger than any run's number of jobs ending at once.
	w := &JobWatch{bus: b, signals: make(chan *godbus.Signal, 1024)}
	b.Conn.Signal(w.signals)
	err := b.Conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(Systemd.Service),
		godbus.WithMatchInterface(Systemd.Interface), godbus.WithMatchMember("JobRemoved"))
	if err != nil {
		return nil, Because("Could not watch jobs", err)
	}
	return w, nil
}

// Wait returns when all the jobs have ended; job path to unit. The error is
// about the first job that failed; report is called for each of them.
func (w *JobWatch) Wait(ctx context.Context, jobs map[godbus.ObjectPath]string, report func(string)) error {
	failed := false
	for len(jobs) > 0 {
		select {
		case <-ctx.Done():
			return Failf("Interrupted; the job goes on in the background.")
		case signal, ok := <-w.signals:
			if !ok {
				return Failf("Failed to wait for response: Connection terminated")
			}
			var id uint32
			var path godbus.ObjectPath
			var unit, result string
			if signal.Name != Systemd.Interface+".JobRemoved" || godbus.Store(signal.Body, &id, &path, &unit, &result) != nil {
				continue
			}
			name, mine := jobs[path]
			if !mine {
				continue
			}
			delete(jobs, path)
			if text := w.bus.JobText(ctx, name, result); text != "" {
				failed = true
				report(text)
			}
		}
	}
	if failed {
		return ErrReported
	}
	return nil
}

// ErrReported ends a run with status 1 when all there is to say has been said.
var ErrReported error = Message("")

var resultReasons = map[string]string{
	"resources":       "of unavailable resources or another system error",
	"protocol":        "the service did not take the steps required by its unit configuration",
	"timeout":         "a timeout was exceeded",
	"exit-code":       "the control process exited with error code",
	"signal":          "a fatal signal was delivered to the control process",
	"core-dump":       "a fatal signal was delivered causing the control process to dump core",
	"watchdog":        "the service failed to send watchdog ping",
	"start-limit-hit": "start of the service was attempted too often",
	"oom-kill":        "the service was terminated by the out-of-memory killer",
}

// JobText explains how a job of a unit failed, and where to look; "" if it
// did not.
func (b *Bus) JobText(ctx context.Context, unit, result string) string {
	switch result {
	case "done", "skipped":
		return ""
	case "canceled":
		return fmt.Sprintf("Job for %s canceled.", unit)
	case "timeout":
		return fmt.Sprintf("Job for %s timed out.", unit)
	case "dependency":
		return fmt.Sprintf("A dependency job for %s failed. See 'journalctl -xe' for details.", unit)
	case "invalid":
		return fmt.Sprintf("%s is not active, cannot reload.", unit)
	case "assert":
		return fmt.Sprintf("Assertion failed on job for %s.", unit)
	case "unsupported":
		return fmt.Sprintf("Operation on or unit type of %s not supported on this system.", unit)
	case "collected":
		return fmt.Sprintf("Queued job for %s was garbage collected.", unit)
	case "once":
		return fmt.Sprintf("Unit %s was started already once and can't be started again.", unit)
	}
	return b.failureText(ctx, unit)
}

func (b *Bus) failureText(ctx context.Context, unit string) string {
	see := fmt.Sprintf("See \"systemctl status %s\" and \"journalctl -xeu %s\" for details.", unit, unit)
	result, err := b.UnitProperty(ctx, unit, "Service", "Result")
	if err != nil {
		return fmt.Sprintf("Job for %s failed. See \"journalctl -xe\" for details.", unit)
	}
	reason, known := resultReasons[fmt.Sprint(result)]
	if !known {
		return fmt.Sprintf("Job for %s failed.\n%s", unit, see)
	}
	text := fmt.Sprintf("Job for %s failed because %s.\n%s", unit, reason, see)
	if result == "start-limit-hit" {
		text += fmt.Sprintf("\nTo force a start use \"systemctl reset-failed %s\"\nfollowed by \"systemctl start %s\" again.", unit, unit)
	}
	return text
}

// UnitProperty reads a property of a unit from the service manager; kind is the
// last part of the interface ("Service").
func (b *Bus) UnitProperty(ctx context.Context, unit, kind, name string) (any, error) {
	var path godbus.ObjectPath
	if err := b.Call(ctx, Systemd, "GetUnit", []any{unit}, &path); err != nil {
		return nil, err
	}
	var value godbus.Variant
	properties := Object{Systemd.Service, path, "org.freedesktop.DBus.Properties"}
	if err := b.Call(ctx, properties, "Get", []any{"org.freedesktop.systemd1." + kind, name}, &value); err != nil {
		return nil, err
	}
	return value.Value(), nil
}
