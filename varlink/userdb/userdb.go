// Package userdb serves io.systemd.UserDatabase for the ids that machines' user
// namespaces map onto the host (systemd.io/USER_GROUP_API). It only names ids;
// it authenticates nobody and lists nothing.
package userdb

import (
	"context"
	"errors"

	"machined/internal/mapped"
	"machined/varlink"
)

// Service is the name that callers must ask for: the socket's file name.
const Service = "io.systemd.Machine"

// SocketPath is where nss-systemd(8) and userdbctl(1) look.
const SocketPath = "/run/systemd/userdb/" + Service

// Errors of io.systemd.UserDatabase.
const (
	prefix                   = "io.systemd.UserDatabase."
	errNoRecordFound         = prefix + "NoRecordFound"
	errBadService            = prefix + "BadService"
	errConflictingRecord     = prefix + "ConflictingRecordFound"
	errEnumerationNotAllowed = prefix + "EnumerationNotSupported"
)

// Interface returns the interface over the directory.
func Interface(ids *mapped.Directory) varlink.Interface {
	s := service{ids}
	return varlink.Interface{
		Name:        "io.systemd.UserDatabase",
		Description: description,
		Methods: map[string]varlink.Method{
			"GetUserRecord":  {Handler: s.user},
			"GetGroupRecord": {Handler: s.group},
			"GetMemberships": {Handler: s.memberships},
		},
	}
}

type service struct{ ids *mapped.Directory }

type answer struct {
	Record     any  `json:"record"`
	Incomplete bool `json:"incomplete"`
}

type userRecord struct {
	UserName      string `json:"userName"`
	UID           uint32 `json:"uid"`
	GID           uint32 `json:"gid"`
	RealName      string `json:"realName"`
	HomeDirectory string `json:"homeDirectory"`
	Shell         string `json:"shell"`
	Locked        bool   `json:"locked"`
	Service       string `json:"service"`
	Disposition   string `json:"disposition"`
}

type groupRecord struct {
	GroupName   string `json:"groupName"`
	GID         uint32 `json:"gid"`
	Description string `json:"description"`
	Service     string `json:"service"`
	Disposition string `json:"disposition"`
}

// ignoreFilters reads the filters that newer callers send; they apply them to
// the answer themselves.
func ignoreFilters(p *varlink.Params, ids string) {
	_ = p.Strings("fuzzyNames")
	_ = p.Strings("dispositionMask")
	_ = p.Uint64(ids + "Min")
	_ = p.Uint64(ids + "Max")
}

func (s service) user(_ context.Context, call *varlink.Call) (any, error) {
	e, err := s.find(call.Params, mapped.User, "uid", "userName")
	if err != nil {
		return nil, err
	}
	return answer{Record: userRecord{
		UserName: e.Name, UID: e.ID, GID: mapped.NoGroup, RealName: e.Comment,
		HomeDirectory: "/", Shell: "/usr/sbin/nologin", Locked: true,
		Service: Service, Disposition: "container",
	}}, nil
}

func (s service) group(_ context.Context, call *varlink.Call) (any, error) {
	e, err := s.find(call.Params, mapped.Group, "gid", "groupName")
	if err != nil {
		return nil, err
	}
	return answer{Record: groupRecord{
		GroupName: e.Name, GID: e.ID, Description: e.Comment,
		Service: Service, Disposition: "container",
	}}, nil
}

func (s service) find(p *varlink.Params, kind mapped.Kind, idKey, nameKey string) (mapped.Entry, error) {
	id := p.Uint32(idKey)
	name := p.String(nameKey)
	service := p.RequiredString("service")
	ignoreFilters(p, idKey)
	if err := p.Done(); err != nil {
		return mapped.Entry{}, err
	}
	if service != Service {
		return mapped.Entry{}, varlink.NewError(errBadService)
	}
	var e mapped.Entry
	var err error
	switch {
	case id != nil:
		e, err = s.ids.ByID(kind, *id)
	case name != nil:
		e, err = s.ids.ByName(kind, *name)
	default:
		return e, varlink.NewError(errEnumerationNotAllowed)
	}
	if err != nil {
		if errors.Is(err, mapped.ErrNotFound) {
			err = varlink.NewError(errNoRecordFound)
		}
		return e, err
	}
	if name != nil && e.Name != *name {
		return e, varlink.NewError(errConflictingRecord)
	}
	return e, nil
}

func (s service) memberships(_ context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	_ = p.String("userName")
	_ = p.String("groupName")
	service := p.RequiredString("service")
	if err := p.Done(); err != nil {
		return nil, err
	}
	if service != Service {
		return nil, varlink.NewError(errBadService)
	}
	return nil, varlink.NewError(errNoRecordFound)
}

const description = `interface io.systemd.UserDatabase

# Retrieve one user record, by UID, by name, or by both.
method GetUserRecord(
	uid: ?int,
	userName: ?string,
	fuzzyNames: ?[]string,
	dispositionMask: ?[]string,
	uidMin: ?int,
	uidMax: ?int,
	service: string
) -> (
	record: object,
	incomplete: bool
)

# Retrieve one group record, by GID, by name, or by both.
method GetGroupRecord(
	gid: ?int,
	groupName: ?string,
	fuzzyNames: ?[]string,
	dispositionMask: ?[]string,
	gidMin: ?int,
	gidMax: ?int,
	service: string
) -> (
	record: object,
	incomplete: bool
)

# Retrieve memberships; machines have none to offer.
method GetMemberships(
	userName: ?string,
	groupName: ?string,
	service: string
) -> (
	userName: string,
	groupName: string
)

# No matching record.
error NoRecordFound()

# The service asked for is not this one.
error BadService()

# The service is not available at the moment.
error ServiceNotAvailable()

# The two keys belong to different records.
error ConflictingRecordFound()

# The record does not match the filter.
error NonMatchingRecordFound()

# Records can't be listed.
error EnumerationNotSupported()
`
