package server

import (
	"context"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/image"
)

// ownImageMethods are the methods of Manager1 that act on images, which stock's
// machined does not have.
func (s *Server) ownImageMethods() []dbus.Method {
	if s.images == nil {
		return nil
	}
	return []dbus.Method{
		{Name: "CloneImage", In: args("s name", "s new_name", "a{sv} options"), Handler: s.imageByName(s.cloneImageWith)},
		{Name: "CreateImage", In: args("s name", "s source", "a{sv} options"), Handler: handler(s.createImage)},
		{Name: "SnapshotImage", In: args("s name", "s snapshot"), Out: args("s snapshot"), Handler: s.imageByName(s.snapshotImage)},
		{Name: "ListSnapshots", In: args("s name"), Out: args("a(sstst) snapshots"), Handler: handler(s.listSnapshots)},
		{Name: "RollbackImage", In: args("s name", "s snapshot"), Out: args("s snapshot"), Handler: s.imageByName(s.rollbackImage)},
		{Name: "FlattenImage", In: args("s name"), Handler: s.imageByName(s.flattenImage)},
		{Name: "PruneSnapshots", In: args("s name", "as snapshots", "u keep"), Out: args("as removed"), Handler: handler(s.pruneSnapshots)},
	}
}

func (s *Server) cloneImageWith(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	newName := c.String(0)
	if !image.ValidName(newName) {
		return nil, invalid("Image name '%.255s' is invalid.", newName)
	}
	options, _ := c.Args[1].(map[string]godbus.Variant)
	var opts image.CloneOptions
	for key, value := range options {
		on, ok := value.Value().(bool)
		switch {
		case ok && key == "ReadOnly":
			opts.ReadOnly = on
		case ok && key == "NewIdentity":
			opts.NewIdentity = on
		case ok && key == "Overlay":
			opts.Overlay = on
		default:
			return nil, invalid("Unknown option '%.64s' of type '%s'", key, value.Signature())
		}
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "clone", "new_name", newName}); err != nil {
		return nil, err
	}
	return nil, s.images.CloneWith(ctx, img.Name, newName, opts)
}

// checkSnapshot refuses what cannot name a snapshot; "" leaves the choice to the store.
func checkSnapshot(name string) error {
	if name != "" && image.CheckSnapshotName(name) != nil {
		return invalid("Snapshot name '%.255s' is invalid.", name)
	}
	return nil
}

func (s *Server) snapshotImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	snap := c.String(0)
	if err := checkSnapshot(snap); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "snapshot", "snapshot", snap}); err != nil {
		return nil, err
	}
	made, err := s.images.Snapshot(ctx, img.Name, snap)
	return []any{made}, err
}

// listSnapshots needs no authorisation, as ListImages.
func (s *Server) listSnapshots(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	name := c.String(0)
	if name != "" {
		if err := s.imageExists(ctx, name); err != nil {
			return nil, err
		}
	}
	list, err := s.images.Snapshots(ctx, name)
	if err != nil {
		return nil, err
	}
	out := make([]machine1.ListedSnapshot, len(list))
	for i := range list {
		out[i] = machine1.ListedSnapshot{Image: list[i].Image, Name: list[i].Name, CreatedUSec: usec(list[i].Created),
			Type: string(list[i].Type), UsageBytes: list[i].Usage}
	}
	return []any{out}, nil
}

func (s *Server) rollbackImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	snap := c.String(0)
	if err := checkSnapshot(snap); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "rollback", "snapshot", snap}); err != nil {
		return nil, err
	}
	used, err := s.images.Rollback(ctx, img.Name, snap)
	return []any{used}, err
}

func (s *Server) flattenImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "flatten"}); err != nil {
		return nil, err
	}
	return nil, s.images.Flatten(ctx, img.Name)
}

func (s *Server) pruneSnapshots(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	name := c.String(0)
	snaps, _ := c.Args[1].([]string)
	keep := int(min(c.Uint32(2), 1<<30))
	if !image.ValidName(name) {
		return nil, invalid("Image name '%.255s' is invalid.", name)
	}
	for _, snap := range snaps {
		if snap == "" {
			return nil, invalid("Snapshot name '' is invalid.")
		}
		if err := checkSnapshot(snap); err != nil {
			return nil, err
		}
	}
	d := details{"image", name, "verb", "prune", "snapshot", strings.Join(snaps, " ")}
	if err := s.authorize(ctx, c, actionManageImages, d); err != nil {
		return nil, err
	}
	removed, err := s.images.Prune(ctx, name, snaps, keep)
	if err != nil {
		return nil, err
	}
	if removed == nil {
		removed = []string{}
	}
	return []any{removed}, nil
}
