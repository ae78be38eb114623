package sys

import "golang.org/x/sys/unix"

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
