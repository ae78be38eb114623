package main

import (
	"bytes"
	"os"
	"strconv"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"

	"machined/registry"
)

// logFormat gives each line its priority where the journal reads them
// (sd-daemon(3)), and plain text otherwise.
func logFormat() logrus.Formatter {
	text := &logrus.TextFormatter{DisableColors: true, DisableTimestamp: true}
	if os.Getenv("JOURNAL_STREAM") == "" {
		text.DisableTimestamp = false
		return text
	}
	return &priorityFormat{text}
}

type priorityFormat struct{ inner *logrus.TextFormatter }

var priorities = map[logrus.Level]string{
	logrus.PanicLevel: "<0>", logrus.FatalLevel: "<2>", logrus.ErrorLevel: "<3>",
	logrus.WarnLevel: "<4>", logrus.InfoLevel: "<6>", logrus.DebugLevel: "<7>", logrus.TraceLevel: "<7>",
}

func (f *priorityFormat) Format(e *logrus.Entry) ([]byte, error) {
	line, err := f.inner.Format(e)
	if err != nil {
		return nil, err
	}
	// The level is in the priority; a message of one line stays one line.
	line = bytes.TrimPrefix(line, []byte("level="+e.Level.String()+" "))
	return append([]byte(priorities[e.Level]), line...), nil
}

// journalEntry records the start or the end of a machine with the fields that
// the journal's catalogue knows.
func journalEntry(log logrus.FieldLogger) func(registry.Entry) {
	if !journal.Enabled() {
		return nil
	}
	return func(e registry.Entry) {
		err := journal.Send(e.Message, journal.PriInfo, map[string]string{
			"MESSAGE_ID":        e.MessageID,
			"NAME":              e.Name,
			"LEADER":            strconv.Itoa(e.Leader),
			"SYSLOG_IDENTIFIER": "systemd-machined",
		})
		if err != nil {
			log.WithError(err).WithField("machine", e.Name).Info(e.Message)
		}
	}
}
