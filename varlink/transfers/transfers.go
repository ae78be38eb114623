// Package transfers serves the varlink interface io.systemd.Import: the list of
// running transfers, and pulls that tell how they go. It reads parameters and
// has callers authorised; the transfers themselves are import1's.
package transfers

import (
	"context"
	"errors"
	"strings"

	"github.com/sirupsen/logrus"

	"machined/internal/sys"
	"machined/polkit"
	"machined/varlink"
	"machined/varlink/service"
)

// Socket and registry link of the interface, below the run-time directory.
const (
	Socket       = "systemd/io.systemd.Import"
	RegistryLink = "varlink/registry/io.systemd.Import"
)

const (
	prefix               = "io.systemd.Import."
	errAlreadyInProgress = prefix + "AlreadyInProgress"
	errCancelled         = prefix + "TransferCancelled"
	errFailed            = prefix + "TransferFailed"
	errNoTransfers       = prefix + "NoTransfers"

	actionPull = "org.freedesktop.import1.pull"
)

// Errors that Transfers.Pull returns, wrapped.
var (
	ErrInProgress = errors.New("transfer in progress already")
	// ErrParameter says that a parameter is against a rule; Parameter names it.
	ErrParameter = errors.New("invalid parameter")
)

// ParameterError is an ErrParameter.
type ParameterError struct{ Parameter string }

func (e *ParameterError) Error() string { return "invalid parameter " + e.Parameter }

// Is makes errors.Is find ErrParameter.
func (e *ParameterError) Is(target error) bool { return target == ErrParameter }

// Transfer is a running transfer. Progress is 0.0 to 1.0, negative when unknown.
type Transfer struct {
	ID                         uint32
	Type, Remote, Local, Class string
	Progress                   float64
}

// Pull is what a caller wants pulled; names are those of the interface.
type Pull struct {
	Remote, Local, Type, Class, Verify, ImageRoot string
	Force, ReadOnly, KeepDownload                 bool
}

// Event is one thing that happens to a transfer. The last one has a Result:
// done, canceled or failed.
type Event struct {
	Progress *float64
	Message  string
	Priority int
	Result   string
}

// Transfers is what the interface asks of the transfer service.
type Transfers interface {
	Transfers() []Transfer
	// Check returns a ParameterError for a pull that cannot be, before anybody is asked.
	Check(p Pull) error
	// Pull starts a transfer. Its events come on the channel, which is closed
	// after the last; who does not read loses progress, never the result.
	Pull(p Pull) (id uint32, events <-chan Event, err error)
}

// Authority says whether a process of the user uid may do an action.
type Authority interface {
	CheckProcess(ctx context.Context, p *sys.Process, uid uint32, action string, details map[string]string, interactive bool) error
}

// Service answers the interface.
type Service struct {
	Transfers Transfers
	Authority Authority
	OwnUID    uint32
	Log       logrus.FieldLogger
}

// Server makes a varlink server of the service.
func (s *Service) Server(version string) *varlink.Server {
	return varlink.NewServer(varlink.Config{
		Vendor: "machined", Product: "machine-importd", Version: version, URL: "https://systemd.io/", Log: s.Log,
		Interfaces: []varlink.Interface{
			{Name: "io.systemd.Import", Description: importIDL, Methods: map[string]varlink.Method{
				"ListTransfers": {Handler: s.list, NeedsMore: true},
				"Pull":          {Handler: s.pull},
			}},
			service.Interface(service.Config{Log: s.Log, OwnUID: s.OwnUID}),
		},
	})
}

var classes = map[string]bool{"machine": true, "portable": true, "sysext": true, "confext": true}

type row struct {
	ID      uint32   `json:"id"`
	Type    string   `json:"type"`
	Remote  string   `json:"remote"`
	Local   string   `json:"local,omitempty"`
	Class   string   `json:"class"`
	Percent *float64 `json:"percent,omitempty"`
}

func (s *Service) list(_ context.Context, call *varlink.Call) (any, error) {
	class := call.Params.String("class")
	if class != nil && !classes[*class] {
		call.Params.Invalid("class")
	}
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	stream := call.Stream()
	for _, t := range s.Transfers.Transfers() {
		if class != nil && t.Class != *class {
			continue
		}
		r := row{ID: t.ID, Type: strings.ReplaceAll(t.Type, "-", "_"), Remote: t.Remote, Local: t.Local, Class: t.Class}
		if t.Progress >= 0 {
			r.Percent = &t.Progress
		}
		if err := stream.Add(r); err != nil {
			return nil, err
		}
	}
	return stream.End(varlink.NewError(errNoTransfers))
}

func readPull(p *varlink.Params) Pull {
	text := func(name, fallback string) string {
		if s := p.String(name); s != nil {
			return *s
		}
		return fallback
	}
	pull := Pull{
		Remote: p.RequiredString("remote"), Type: p.RequiredString("type"), Class: p.RequiredString("class"),
		Local: text("local", ""), Verify: text("verify", "signature"), ImageRoot: text("imageRoot", ""),
		Force: p.Flag("force"), ReadOnly: p.Flag("readOnly"), KeepDownload: p.Flag("keepDownload"),
	}
	if pull.Type != "tar" && pull.Type != "raw" && pull.Type != "oci" {
		p.Invalid("type")
	}
	if !classes[pull.Class] {
		p.Invalid("class")
	}
	if pull.Verify != "no" && pull.Verify != "checksum" && pull.Verify != "signature" {
		p.Invalid("verify")
	}
	return pull
}

func (s *Service) pull(ctx context.Context, call *varlink.Call) (any, error) {
	ask := call.Params.Flag("allowInteractiveAuthentication")
	pull := readPull(call.Params)
	err := call.Params.Done()
	if err == nil {
		err = s.Transfers.Check(pull)
	}
	if err == nil {
		err = s.authorize(ctx, call, pull, ask)
	}
	if err != nil {
		return nil, named(err, pull)
	}
	id, events, err := s.Transfers.Pull(pull)
	if err != nil {
		return nil, named(err, pull)
	}
	first := map[string]uint32{"id": id}
	if !call.More {
		return first, nil
	}
	if err := call.Continue(first); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err() // the caller left; the transfer goes on
		case event, ok := <-events:
			switch {
			case !ok || event.Result == "failed":
				return nil, varlink.NewError(errFailed)
			case event.Result == "canceled":
				return nil, varlink.NewError(errCancelled)
			case event.Result != "":
				return nil, nil
			case event.Progress != nil:
				err = call.Continue(map[string]float64{"progress": *event.Progress})
			default:
				err = call.Continue(map[string]any{"log": map[string]any{"message": event.Message, "priority": event.Priority}})
			}
			if err != nil {
				return nil, err
			}
		}
	}
}

func (s *Service) authorize(ctx context.Context, call *varlink.Call, pull Pull, ask bool) error {
	if call.Peer.UID == 0 || call.Peer.UID == s.OwnUID {
		return nil
	}
	if s.Authority == nil {
		return varlink.NewError(varlink.ErrorPermissionDenied)
	}
	// Without a pidfd the caller may have been replaced by another program.
	process, err := call.Peer.Process()
	if err == nil {
		err = s.Authority.CheckProcess(ctx, process, call.Peer.UID, actionPull, map[string]string{
			"remote": pull.Remote, "local": pull.Local, "class": pull.Class, "type": pull.Type, "verify": pull.Verify,
		}, ask)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, polkit.ErrInteractionRequired):
		return varlink.NewError(varlink.ErrorInteractiveAuthRequired)
	}
	s.Log.WithField("sender", call.Peer.PID).WithField("action", actionPull).WithError(err).Debug("refused")
	return varlink.NewError(varlink.ErrorPermissionDenied)
}

func named(err error, pull Pull) error {
	var parameter *ParameterError
	switch {
	case errors.As(err, &parameter):
		return varlink.InvalidParameter(parameter.Parameter)
	case errors.Is(err, ErrInProgress):
		return &varlink.Error{Name: errAlreadyInProgress, Parameters: map[string]any{"remote": pull.Remote}}
	}
	return err
}
