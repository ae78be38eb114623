// Package userdb looks up a user or a group of this host with all that a login
// needs: account, hashed password, public keys.
//
// It asks systemd-userdbd(8) where that runs, reads passwd, group, shadow and
// gshadow, and drop-in records (nss-systemd(8)), and lets the host's getent(1)
// ask what else nsswitch.conf(5) names. It never looks into an image, and
// changes nothing.
package userdb

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNotFound says that no source knows the user or group.
var ErrNotFound = errors.New("no such user or group")

// Overflow is the ID of nobody and nogroup.
const Overflow = 65534

// User is a user of the host.
type User struct {
	Name     string
	UID, GID uint32
	Home     string
	Shell    string
	// Passwords are crypt(5) hashes; one that begins with "!" is locked.
	Passwords []string
	// SSHKeys are lines of an authorized_keys file.
	SSHKeys []string
}

// Group is a group of the host.
type Group struct {
	Name      string
	GID       uint32
	Passwords []string
}

// DB is where to look. Host is this host's; tests use others.
type DB struct {
	Etc     string   // passwd, group, shadow, gshadow
	Socket  string   // systemd-userdbd's, "" for none
	DropIns []string // directories of records
	// Getent prints the line of a database for a key; "" is not found.
	Getent func(database, key string) string
}

// Host is this host's user database.
var Host = DB{
	Etc:     "/etc",
	Socket:  "/run/systemd/userdb/io.systemd.Multiplexer",
	DropIns: []string{"/etc/userdb", "/run/userdb", "/run/host/userdb", "/usr/lib/userdb"},
	Getent:  getent,
}

// Bounds: patience with userdbd, which may ask a network; sizes of what is read.
const (
	patience   = 20 * time.Second
	maxRecord  = 1 << 20
	maxEtcFile = 64 << 20
)

// User looks a user up by name. The error is ErrNotFound when nobody knows it.
func (d DB) User(name string) (User, error) {
	if !ValidName(name) {
		return User{}, fmt.Errorf("user %q: %w", name, ErrNotFound)
	}
	if raw := d.ask("GetUserRecord", map[string]any{"userName": name, "service": "io.systemd.Multiplexer"}); raw != nil {
		if u, err := parseUser(raw, nil); err == nil && u.Name == name {
			return u, nil
		}
	}
	for _, dir := range d.DropIns {
		if raw := dropIn(dir, name+".user"); raw != nil {
			u, err := parseUser(raw, dropIn(dir, name+".user-privileged"))
			if err == nil && u.Name == name {
				return u, nil
			}
		}
	}
	line := d.line("passwd", func(f []string) bool { return f[0] == name })
	if line == "" && d.Getent != nil {
		line = d.Getent("passwd", name)
	}
	u, err := passwdLine(line)
	if err != nil || u.Name != name {
		return User{}, fmt.Errorf("user %q: %w", name, ErrNotFound)
	}
	shadow := d.line("shadow", func(f []string) bool { return f[0] == name })
	if shadow == "" && d.Getent != nil {
		shadow = d.Getent("shadow", name)
	}
	if hash, ok := hashOf(shadow, name); ok {
		u.Passwords = []string{hash}
	}
	return u, nil
}

// Group looks a group up by its ID. The error is ErrNotFound when nobody knows it.
func (d DB) Group(gid uint32) (Group, error) {
	key := strconv.FormatUint(uint64(gid), 10)
	if raw := d.ask("GetGroupRecord", map[string]any{"gid": gid, "service": "io.systemd.Multiplexer"}); raw != nil {
		if g, err := parseGroup(raw, nil); err == nil && g.GID == gid {
			return g, nil
		}
	}
	for _, dir := range d.DropIns {
		if raw := dropIn(dir, key+".group"); raw != nil {
			g, err := parseGroup(raw, dropIn(dir, key+".group-privileged"))
			if err == nil && g.GID == gid {
				return g, nil
			}
		}
	}
	line := d.line("group", func(f []string) bool { return len(f) > 2 && f[2] == key })
	if line == "" && d.Getent != nil {
		line = d.Getent("group", key)
	}
	f := strings.Split(line, ":")
	if len(f) < 3 || f[2] != key || !ValidName(f[0]) {
		return Group{}, fmt.Errorf("group %d: %w", gid, ErrNotFound)
	}
	g := Group{Name: f[0], GID: gid}
	if hash, ok := hashOf(d.line("gshadow", func(f []string) bool { return f[0] == g.Name }), g.Name); ok && strings.Trim(hash, "!") != "" {
		g.Passwords = []string{hash}
	}
	return g, nil
}

// line is the first line of a file in Etc whose fields match, "" without one.
func (d DB) line(file string, match func([]string) bool) string {
	f, err := os.Open(filepath.Join(d.Etc, file))
	if err != nil {
		return ""
	}
	defer f.Close()
	return findLine(f, match)
}

func findLine(r io.Reader, match func([]string) bool) string {
	lines := bufio.NewScanner(io.LimitReader(r, maxEtcFile))
	lines.Buffer(nil, maxRecord) // a group may have many members
	for lines.Scan() {
		if match(strings.Split(lines.Text(), ":")) {
			return lines.Text()
		}
	}
	return ""
}

// passwdLine reads a line of passwd(5).
func passwdLine(line string) (User, error) {
	f := strings.Split(strings.TrimRight(line, "\n"), ":")
	if len(f) != 7 || !ValidName(f[0]) {
		return User{}, fmt.Errorf("%q is no line of passwd", line)
	}
	uid, err := parseID(f[2])
	if err != nil {
		return User{}, err
	}
	gid, err := parseID(f[3])
	if err != nil {
		return User{}, err
	}
	return User{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || !validID(n) {
		return 0, fmt.Errorf("%q is no user or group ID", s)
	}
	return uint32(n), nil
}

// validID: the last ID of 32 and that of 16 bits mean "none" to system calls.
func validID(n uint64) bool { return n < math.MaxUint32 && n != math.MaxUint16 }

// hashOf is the second field of a line of shadow(5). What can be no hash, as "x"
// and "*", is left out.
func hashOf(line, name string) (string, bool) {
	f := strings.Split(line, ":")
	if len(f) < 2 || f[0] != name || f[1] == "x" || f[1] == "*" {
		return "", false
	}
	return f[1], true
}

// record has what is of interest of a user or group record (systemd.io, JSON
// User Records).
type record struct {
	UserName      string     `json:"userName"`
	GroupName     string     `json:"groupName"`
	UID           *uint64    `json:"uid"`
	GID           *uint64    `json:"gid"`
	HomeDirectory string     `json:"homeDirectory"`
	Shell         string     `json:"shell"`
	Privileged    privileged `json:"privileged"`
}

type privileged struct {
	HashedPassword    []string `json:"hashedPassword"`
	SSHAuthorizedKeys []string `json:"sshAuthorizedKeys"`
}

func parseRecord(raw, secret []byte) (record, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("parse record: %w", err)
	}
	if secret != nil {
		if err := json.Unmarshal(secret, &r); err != nil {
			return r, fmt.Errorf("parse privileged record: %w", err)
		}
	}
	return r, nil
}

func parseUser(raw, secret []byte) (User, error) {
	r, err := parseRecord(raw, secret)
	if err != nil {
		return User{}, err
	}
	if !ValidName(r.UserName) || r.UID == nil || !validID(*r.UID) {
		return User{}, errors.New("record has no valid user name and ID")
	}
	u := User{
		Name: r.UserName, UID: uint32(*r.UID), GID: uint32(*r.UID), Home: r.HomeDirectory, Shell: r.Shell,
		Passwords: r.Privileged.HashedPassword, SSHKeys: r.Privileged.SSHAuthorizedKeys,
	}
	if r.GID != nil {
		if !validID(*r.GID) {
			return User{}, errors.New("record has no valid group ID")
		}
		u.GID = uint32(*r.GID)
	}
	if u.Home == "" {
		u.Home = "/home/" + u.Name
	}
	return u, nil
}

func parseGroup(raw, secret []byte) (Group, error) {
	r, err := parseRecord(raw, secret)
	if err != nil {
		return Group{}, err
	}
	if !ValidName(r.GroupName) || r.GID == nil || !validID(*r.GID) {
		return Group{}, errors.New("record has no valid group name and ID")
	}
	return Group{Name: r.GroupName, GID: uint32(*r.GID), Passwords: r.Privileged.HashedPassword}, nil
}

func dropIn(dir, name string) []byte {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Mode()&fs.ModeType != 0 || st.Size() > maxRecord {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil
	}
	return data
}

// ask calls a method of io.systemd.UserDatabase and returns the record of the
// reply, nil where there is none: the other sources are asked then.
func (d DB) ask(method string, parameters map[string]any) []byte {
	if d.Socket == "" {
		return nil
	}
	conn, err := net.DialTimeout("unix", d.Socket, patience)
	if err != nil {
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil
	}
	call, err := json.Marshal(map[string]any{"method": "io.systemd.UserDatabase." + method, "parameters": parameters})
	if err != nil {
		return nil
	}
	if _, err := conn.Write(append(call, 0)); err != nil {
		return nil
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, maxRecord)).ReadBytes(0)
	if err != nil {
		return nil
	}
	return parseReply(bytes.TrimSuffix(answer, []byte{0}))
}

// parseReply takes the record out of a varlink reply.
func parseReply(answer []byte) []byte {
	var reply struct {
		Error      string `json:"error"`
		Parameters struct {
			Record json.RawMessage `json:"record"`
		} `json:"parameters"`
	}
	if json.Unmarshal(answer, &reply) != nil || reply.Error != "" {
		return nil
	}
	return reply.Parameters.Record
}

// getent asks the C library's sources, which a static program can't load.
func getent(database, key string) string {
	out, err := exec.Command("getent", "--", database, key).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// ValidName tells whether s can be the name of a user or group: what Linux tools
// take, and nothing that means something in a path or in passwd(5).
func ValidName(s string) bool {
	if s == "" || len(s) > 256 || s[0] == '-' || s == "." || s == ".." {
		return false
	}
	digits := true
	for _, c := range []byte(s) {
		if c <= ' ' || c == 0x7f || c == ':' || c == '/' {
			return false
		}
		digits = digits && c >= '0' && c <= '9'
	}
	return !digits
}
