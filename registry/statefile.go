package registry

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"machined/internal/envfile"
)

// maxStateBytes bounds a state file: PATH_MAX twice, the rest is small.
const maxStateBytes = 64 << 10

// errBadState is wrapped by what is wrong with the text of a state file.
var errBadState = errors.New("bad state file")

// writeState writes the state file of m. Its keys, their order and quoting are
// those that systemctl -M, journalctl -M and sd-login(3) read.
func writeState(w io.Writer, m *Machine) error {
	b := bufio.NewWriter(w)
	_, _ = b.WriteString("# This is private data. Do not parse.\n")
	put := func(key, value string) {
		if value != "" {
			_, _ = b.WriteString(key + "=" + quoteValue(value) + "\n")
		}
	}
	put("NAME", m.Name)
	put("UID", strconv.FormatUint(uint64(m.UID), 10))
	put("SCOPE", m.Unit)
	put("SERVICE", m.Service)
	put("ROOT", m.RootDirectory)
	if m.ID != [16]byte{} {
		put("ID", hex.EncodeToString(m.ID[:]))
	}
	putProcess := func(key string, p Process) {
		if p.PID > 0 {
			put(key, strconv.Itoa(p.PID))
		}
		if p.PID > 0 && p.FDID != 0 {
			put(key+"_PIDFDID", strconv.FormatUint(p.FDID, 10))
		}
	}
	putProcess("LEADER", m.Leader)
	putProcess("SUPERVISOR", m.Supervisor)
	put("CLASS", string(m.Class))
	if !m.Realtime.IsZero() {
		put("REALTIME", strconv.FormatInt(m.Realtime.UnixMicro(), 10))
		put("MONOTONIC", strconv.FormatInt(m.Monotonic.Microseconds(), 10))
	}
	if len(m.NetIfs) > 0 {
		_, _ = b.WriteString(`NETIF="`)
		for _, i := range m.NetIfs {
			_, _ = b.WriteString(" " + strconv.Itoa(i))
		}
		_, _ = b.WriteString("\"\n")
	}
	if m.VSockCID != 0 && m.VSockCID != VSockCIDAny {
		put("VSOCK_CID", strconv.FormatUint(uint64(m.VSockCID), 10))
	}
	put("SSH_ADDRESS", m.SSHAddress)
	put("SSH_PRIVATE_KEY_PATH", m.SSHPrivateKey)
	put("CONTROL_ADDRESS", m.ControlAddress)
	put("SUBGROUP", m.Subgroup)
	return b.Flush()
}

// quoteValue writes a value as a shell assignment takes it.
func quoteValue(s string) string {
	const escaped = "\"\\`$"
	plain := !strings.ContainsAny(s, escaped+"*?['()<>|&;! \t\n\r") &&
		!strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if strings.IndexByte(escaped, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

// parseState reads a state file, of ours or of systemd's. Unknown keys are
// skipped, as are keys whose value makes no sense, so that one damaged line
// costs no more than itself; only a file without a valid name is refused.
func parseState(in io.Reader) (Machine, error) {
	m := Machine{VSockCID: VSockCIDAny}
	data, err := io.ReadAll(io.LimitReader(in, maxStateBytes+1))
	if err != nil {
		return m, err
	}
	if len(data) > maxStateBytes {
		return m, fmt.Errorf("%w: larger than %d bytes", errBadState, maxStateBytes)
	}
	for key, value := range envfile.Assignments(string(data)) {
		m.setState(key, value)
	}
	if !ValidName(m.Name) {
		return m, fmt.Errorf("%w: NAME=%s is no machine name", errBadState, clip(m.Name))
	}
	return m, nil
}

func (m *Machine) setState(key, value string) {
	number := func(bits int) uint64 {
		n, err := strconv.ParseUint(value, 10, bits)
		if err != nil {
			return 0
		}
		return n
	}
	switch key {
	case "NAME":
		m.Name = value
	case "UID":
		m.UID = uint32(number(32))
	case "SCOPE":
		m.Unit = value
	case "SERVICE":
		m.Service = value
	case "ROOT":
		m.RootDirectory = value
	case "ID":
		if id, err := hex.DecodeString(strings.ReplaceAll(value, "-", "")); err == nil && len(id) == len(m.ID) {
			copy(m.ID[:], id)
		}
	case "LEADER":
		m.Leader.PID = int(number(31))
	case "LEADER_PIDFDID":
		m.Leader.FDID = number(64)
	case "SUPERVISOR":
		m.Supervisor.PID = int(number(31))
	case "SUPERVISOR_PIDFDID":
		m.Supervisor.FDID = number(64)
	case "CLASS":
		if c := Class(value); c == ClassContainer || c == ClassVM {
			m.Class = c
		}
	case "REALTIME":
		if n := number(62); n > 0 {
			m.Realtime = time.UnixMicro(int64(n))
		}
	case "MONOTONIC":
		m.Monotonic = time.Duration(min(number(62), uint64(1<<62)/1000)) * time.Microsecond
	case "NETIF":
		m.NetIfs = nil
		for _, field := range strings.Fields(value) {
			if n, err := strconv.ParseInt(field, 10, 32); err == nil && n > 0 && len(m.NetIfs) < maxNetIfs {
				m.NetIfs = append(m.NetIfs, int(n))
			}
		}
	case "VSOCK_CID":
		if n := number(32); n > 0 {
			m.VSockCID = uint32(n)
		}
	case "SSH_ADDRESS":
		m.SSHAddress = value
	case "SSH_PRIVATE_KEY_PATH":
		m.SSHPrivateKey = value
	case "CONTROL_ADDRESS":
		m.ControlAddress = value
	case "SUBGROUP":
		m.Subgroup = value
	}
}
