package server

import (
	"path/filepath"

	"machined/dbus"
	"machined/dbus/import1"
	"machined/transfer"
)

// Watch is told how a transfer goes, in order. Any function may be nil; none may block.
type Watch struct {
	Progress func(fraction float64)
	Log      func(priority int, line string)
	Ended    func(result string)
}

// PreparePull checks the arguments of a pull as the methods of the bus do, for
// callers that come by another way and have been, or will be, authorised there.
// imageRoot may be empty.
func (s *Server) PreparePull(kind transfer.Kind, class, remote, local, verify, imageRoot string, flags uint64) (transfer.Request, error) {
	s.touch()
	req, err := s.preparePull(kind, class, remote, local, verify, flags)
	if err != nil || imageRoot == "" {
		return req, err
	}
	if !filepath.IsAbs(imageRoot) || filepath.Clean(imageRoot) != imageRoot {
		return req, invalid("Image root %s is invalid", imageRoot)
	}
	req.ImageRoot = imageRoot
	req.SearchPath = []string{imageRoot}
	return req, nil
}

// StartPull starts a pull that PreparePull has checked and the caller has had
// authorised. It returns a dbus error named TransferInProgress for a second one
// of the same source.
func (s *Server) StartPull(req transfer.Request, watch Watch) (id uint32, err error) {
	s.touch()
	t, err := s.launch(req, watch)
	if err != nil {
		return 0, err
	}
	return t.id, nil
}

// InProgress says whether err is that of a second pull of the same source.
func InProgress(err error) bool { return dbus.NameOf(err) == import1.ErrorTransferInProgress }

// Running lists the transfers that run.
func (s *Server) Running() []import1.TransferEx {
	s.touch()
	rows := []import1.TransferEx{}
	for _, t := range s.list() {
		rows = append(rows, import1.TransferEx{
			ID: t.id, Type: string(t.req.Kind), Remote: t.req.Remote, Local: t.req.Local, Class: string(t.req.Class),
			Progress: s.progressOf(t), Path: import1.TransferPath(t.id),
		})
	}
	return rows
}
