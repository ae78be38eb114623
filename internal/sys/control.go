package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// ControlFiles returns the files that came with a message (SCM_RIGHTS of unix(7)),
// which are the caller's to close. They are closed on execution already, as net's
// ReadMsgUnix receives them.
func ControlFiles(oob []byte, name string) []*os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), name))
		}
	}
	return files
}

// Sender returns the process that sent a message (SCM_CREDENTIALS of unix(7)), or
// 0, and closes each descriptor that came with it.
func Sender(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	pid := 0
	for i := range messages {
		m := &messages[i]
		if fds, err := unix.ParseUnixRights(m); err == nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
		if len(m.Data) < unix.SizeofUcred {
			continue // the parser takes its length for granted
		}
		if cred, err := unix.ParseUnixCredentials(m); err == nil {
			pid = int(cred.Pid)
		}
	}
	return pid
}
