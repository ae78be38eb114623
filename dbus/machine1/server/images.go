package server

import (
	"context"
	"errors"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/image"
	"machined/internal/envfile"
)

// ImageStore is what the server asks of the image store. Its methods take
// names, and give image.ErrNoSuchImage and the other sentinels of that package.
type ImageStore interface {
	List(ctx context.Context) ([]image.Image, error)
	Get(ctx context.Context, name string) (image.Image, error)
	Remove(ctx context.Context, name string) error
	Rename(ctx context.Context, name, newName string) error
	Clone(ctx context.Context, name, newName string, readOnly bool) error
	CloneWith(ctx context.Context, name, newName string, opts image.CloneOptions) error
	Snapshot(ctx context.Context, name, snap string) (string, error)
	Snapshots(ctx context.Context, name string) ([]image.Snapshot, error)
	Rollback(ctx context.Context, name, snap string) (string, error)
	Create(ctx context.Context, name string, source image.Source, run image.RunTool) error
	Flatten(ctx context.Context, name string) error
	Prune(ctx context.Context, name string, snaps []string, keep int) ([]string, error)
	SetReadOnly(ctx context.Context, name string, readOnly bool) error
	SetLimit(ctx context.Context, name string, limit uint64) error
	Hostname(ctx context.Context, name string) (string, error)
	MachineID(ctx context.Context, name string) ([16]byte, error)
	MachineInfo(ctx context.Context, name string) (envfile.Pairs, error)
	OSRelease(ctx context.Context, name string) (envfile.Pairs, error)
	PoolPath() string
	PoolUsage() uint64
	PoolLimit() uint64
	SetPoolLimit(ctx context.Context, limit uint64) error
	Clean(ctx context.Context, mode image.CleanMode) ([]image.Removed, error)
}

// imageErrors are the names of the store's errors, and what stock's clients are
// used to read: errno's text, which ends the message.
var imageErrors = []struct {
	is         error
	name, text string
}{
	{image.ErrNoSuchImage, machine1.ErrorNoSuchImage, ""},
	{image.ErrNoSuchSnapshot, machine1.ErrorNoSuchSnapshot, ""},
	{image.ErrInvalidName, dbus.ErrorInvalidArgs, ""},
	{image.ErrInvalid, dbus.ErrorInvalidArgs, ""},
	{image.ErrBusy, "System.Error.EBUSY", "Device or resource busy"},
	{image.ErrExists, "org.freedesktop.DBus.Error.FileExists", "File exists"},
	{image.ErrReadOnly, "System.Error.EROFS", "Read-only file system"},
	{image.ErrHostTree, "org.freedesktop.DBus.Error.BadAddress", "Cannot assign requested address"},
	{image.ErrNoSystem, "System.Error.ENOPKG", "Package not installed"},
	{image.ErrNotSupported, dbus.ErrorNotSupported, "Operation not supported"},
	{image.ErrNoMetadata, dbus.ErrorFileNotFound, ""},
}

// imageError gives an error of the store its name on the bus; nil for another.
func imageError(err error) error {
	for _, row := range imageErrors {
		switch {
		case !errors.Is(err, row.is):
		case row.text == "":
			return dbus.Errorf(row.name, "%w", err)
		default:
			return dbus.Errorf(row.name, "%w: %s", err, row.text)
		}
	}
	return nil
}

// lookupImage finds an image; its errors have stock's names and texts.
func (s *Server) lookupImage(ctx context.Context, name string) (image.Image, error) {
	img, err := s.images.Get(ctx, name)
	switch {
	case errors.Is(err, image.ErrInvalidName):
		return img, invalid("Image name '%.255s' is invalid.", name)
	case errors.Is(err, image.ErrNoSuchImage):
		return img, dbus.Errorf(machine1.ErrorNoSuchImage, "No image '%s' known", name)
	}
	return img, err
}

func (s *Server) imageExists(ctx context.Context, name string) error {
	_, err := s.lookupImage(ctx, name)
	return named(err)
}

// imageOp is a method that exists on Manager, with the image's name as first
// argument, and on the Image object without.
type imageOp func(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error)

func (s *Server) imageByName(op imageOp) dbus.Handler {
	return handler(func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
		img, err := s.lookupImage(ctx, c.String(0))
		if err != nil {
			return nil, err
		}
		c.Args = c.Args[1:]
		return op(ctx, c, img)
	})
}

func onImage(op imageOp) dbus.Handler {
	return handler(func(ctx context.Context, c *dbus.Call, object any) ([]any, error) {
		return op(ctx, c, object.(image.Image))
	})
}

func (s *Server) findImage(ctx context.Context, _ *dbus.Call, label string) (any, error) {
	name, ok := machine1.UnescapeLabel(label)
	if !ok {
		return nil, nil
	}
	img, err := s.images.Get(ctx, name)
	if err != nil {
		return nil, nil //nolint:nilerr // no such object
	}
	return img, nil
}

func (s *Server) imageLabels(ctx context.Context) []string {
	list, err := s.images.List(ctx)
	if err != nil {
		s.log.WithError(err).Warn("cannot list images")
		return nil
	}
	out := make([]string, len(list))
	for i := range list {
		out[i] = machine1.EscapeLabel(list[i].Name)
	}
	return out
}

// managerImageMethods are in stock's order, after those of machines.
func (s *Server) managerImageMethods() []dbus.Method {
	return []dbus.Method{
		{Name: "RemoveImage", In: args("s name"), Handler: s.imageByName(s.removeImage)},
		{Name: "RenameImage", In: args("s name", "s new_name"), Handler: s.imageByName(s.renameImage)},
		{Name: "CloneImage", In: args("s name", "s new_name", "b read_only"), Handler: s.imageByName(s.cloneImage)},
		{Name: "MarkImageReadOnly", In: args("s name", "b read_only"), Handler: s.imageByName(s.markImageReadOnly)},
		{Name: "GetImageHostname", In: args("s name"), Out: args("s hostname"), Handler: s.imageByName(s.imageHostname)},
		{Name: "GetImageMachineID", In: args("s name"), Out: args("ay id"), Handler: s.imageByName(s.imageMachineID)},
		{Name: "GetImageMachineInfo", In: args("s name"), Out: args("a{ss} machine_info"), Handler: s.imageByName(s.imageMachineInfo)},
		{Name: "GetImageOSRelease", In: args("s name"), Out: args("a{ss} os_release"), Handler: s.imageByName(s.imageOSRelease)},
		{Name: "SetPoolLimit", In: args("t size"), Handler: handler(s.setPoolLimit)},
		{Name: "SetImageLimit", In: args("s name", "t size"), Handler: s.imageByName(s.setImageLimit)},
		{Name: "CleanPool", In: args("s mode"), Out: args("a(st) images"), Handler: handler(s.cleanPool)},
	}
}

// withoutImages leaves the methods of images out, for a server without a store.
func withoutImages(methods []dbus.Method) []dbus.Method {
	image := map[string]bool{"GetImage": true, "ListImages": true}
	for _, m := range (&Server{}).managerImageMethods() {
		image[m.Name] = true
	}
	var out []dbus.Method
	for _, m := range methods {
		if !image[m.Name] {
			out = append(out, m)
		}
	}
	return out
}

func (s *Server) imageInterface() *dbus.Interface {
	return &dbus.Interface{Name: machine1.ImageInterface, Properties: imageProperties(), Methods: []dbus.Method{
		{Name: "Remove", Handler: onImage(s.removeImage)},
		{Name: "Rename", In: args("s"), Handler: onImage(s.renameImage)},
		{Name: "Clone", In: args("s", "b"), Handler: onImage(s.cloneImage)},
		{Name: "MarkReadOnly", In: args("b"), Handler: onImage(s.markImageReadOnly)},
		{Name: "SetLimit", In: args("t"), Handler: onImage(s.setImageLimit)},
		{Name: "GetHostname", Out: args("s"), Handler: onImage(s.imageHostname)},
		{Name: "GetMachineID", Out: args("ay"), Handler: onImage(s.imageMachineID)},
		{Name: "GetMachineInfo", Out: args("a{ss}"), Handler: onImage(s.imageMachineInfo)},
		{Name: "GetOSRelease", Out: args("a{ss}"), Handler: onImage(s.imageOSRelease)},
	}}
}

func imageProperties() []dbus.Property {
	property := func(name, typ string, f func(img *image.Image) any) dbus.Property {
		return dbus.Property{Name: name, Type: typ, Emits: dbus.EmitsFalse, Get: func(_ context.Context, object any) (any, error) {
			img := object.(image.Image)
			return f(&img), nil
		}}
	}
	return []dbus.Property{
		property("Name", "s", func(i *image.Image) any { return i.Name }),
		property("Path", "s", func(i *image.Image) any { return i.Path }),
		property("Type", "s", func(i *image.Image) any { return string(i.Type) }),
		property("ReadOnly", "b", func(i *image.Image) any { return i.ReadOnly }),
		property("CreationTimestamp", "t", func(i *image.Image) any { return usec(i.Created) }),
		property("ModificationTimestamp", "t", func(i *image.Image) any { return usec(i.Modified) }),
		property("Usage", "t", func(i *image.Image) any { return i.Usage }),
		property("Limit", "t", func(i *image.Image) any { return i.Limit }),
		property("UsageExclusive", "t", func(i *image.Image) any { return i.UsageExclusive }),
		property("LimitExclusive", "t", func(i *image.Image) any { return i.LimitExclusive }),
	}
}

func (s *Server) poolProperties() []dbus.Property {
	if s.images == nil {
		return nil
	}
	property := func(name, typ string, f func() any) dbus.Property {
		return dbus.Property{Name: name, Type: typ, Emits: dbus.EmitsFalse, Get: func(context.Context, any) (any, error) { return f(), nil }}
	}
	return []dbus.Property{
		property("PoolPath", "s", func() any { return s.images.PoolPath() }),
		property("PoolUsage", "t", func() any { return s.images.PoolUsage() }),
		property("PoolLimit", "t", func() any { return s.images.PoolLimit() }),
	}
}

func (s *Server) getImage(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	img, err := s.images.Get(ctx, c.String(0))
	if errors.Is(err, image.ErrInvalidName) { // to stock, too, just a name that no image has
		err = image.ErrNoSuchImage
	}
	if errors.Is(err, image.ErrNoSuchImage) {
		return nil, dbus.Errorf(machine1.ErrorNoSuchImage, "No image '%.255s' known", c.String(0))
	}
	if err != nil {
		return nil, err
	}
	return []any{machine1.ImagePath(img.Name)}, nil
}

func (s *Server) listImages(ctx context.Context, _ *dbus.Call, _ any) ([]any, error) {
	list, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]machine1.ListedImage, len(list))
	for i := range list {
		img := &list[i]
		out[i] = machine1.ListedImage{
			Name: img.Name, Type: string(img.Type), ReadOnly: img.ReadOnly,
			CreatedUSec: usec(img.Created), ModifiedUSec: usec(img.Modified), UsageBytes: img.Usage, Path: machine1.ImagePath(img.Name),
		}
	}
	return []any{out}, nil
}

func (s *Server) removeImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "remove"}); err != nil {
		return nil, err
	}
	return nil, s.images.Remove(ctx, img.Name)
}

func (s *Server) renameImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	newName := c.String(0)
	if !image.ValidName(newName) {
		return nil, invalid("Image name '%.255s' is invalid.", newName)
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "rename", "new_name", newName}); err != nil {
		return nil, err
	}
	return nil, s.images.Rename(ctx, img.Name, newName)
}

func (s *Server) cloneImage(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	newName := c.String(0)
	if !image.ValidName(newName) {
		return nil, invalid("Image name '%.255s' is invalid.", newName)
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "clone", "new_name", newName}); err != nil {
		return nil, err
	}
	return nil, s.images.Clone(ctx, img.Name, newName, c.Bool(1))
}

func (s *Server) markImageReadOnly(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	readOnly, flag := c.Bool(0), "0"
	if readOnly {
		flag = "1"
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", img.Name, "verb", "mark_read_only", "read_only", flag}); err != nil {
		return nil, err
	}
	return nil, s.images.SetReadOnly(ctx, img.Name, readOnly)
}

func (s *Server) setImageLimit(ctx context.Context, c *dbus.Call, img image.Image) ([]any, error) {
	// The detail is called "machine": rules of administrators depend on it.
	if err := s.authorize(ctx, c, actionManageImages, details{"machine", img.Name, "verb", "set_limit"}); err != nil {
		return nil, err
	}
	return nil, s.images.SetLimit(ctx, img.Name, c.Uint64(0))
}

func (s *Server) imageHostname(ctx context.Context, _ *dbus.Call, img image.Image) ([]any, error) {
	name, err := s.images.Hostname(ctx, img.Name)
	if errors.Is(err, image.ErrNoMetadata) {
		err = nil // an empty string says so
	}
	return []any{name}, err
}

func (s *Server) imageMachineID(ctx context.Context, _ *dbus.Call, img image.Image) ([]any, error) {
	id, err := s.images.MachineID(ctx, img.Name)
	if errors.Is(err, image.ErrNoMetadata) {
		err = nil
	}
	return []any{idBytes(id)}, err
}

func (s *Server) imageMachineInfo(ctx context.Context, _ *dbus.Call, img image.Image) ([]any, error) {
	return fields(s.images.MachineInfo(ctx, img.Name))
}

func (s *Server) imageOSRelease(ctx context.Context, _ *dbus.Call, img image.Image) ([]any, error) {
	return fields(s.images.OSRelease(ctx, img.Name))
}

// fields is the answer of a{ss}; what an image does not say is empty.
func fields(m envfile.Pairs, err error) ([]any, error) {
	if errors.Is(err, image.ErrNoMetadata) {
		err = nil
	}
	return []any{entries(m)}, err
}

func (s *Server) setPoolLimit(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	if err := s.authorize(ctx, c, actionManage, details{"verb", "set_pool_limit"}); err != nil {
		return nil, err
	}
	err := s.images.SetPoolLimit(ctx, c.Uint64(0))
	if errors.Is(err, image.ErrNotSupported) {
		return nil, notSupported("Quota is only supported on btrfs.")
	}
	return nil, err
}

func (s *Server) cleanPool(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	mode := image.CleanMode(c.String(0))
	if mode != image.CleanHidden && mode != image.CleanAll {
		return nil, invalid("Unknown mode '%.64s'.", c.String(0))
	}
	if err := s.authorize(ctx, c, actionManage, details{"verb", "clean_pool", "mode", string(mode)}); err != nil {
		return nil, err
	}
	removed, err := s.images.Clean(ctx, mode)
	if err != nil {
		return nil, err
	}
	out := make([]machine1.CleanedImage, len(removed))
	for i, r := range removed {
		out[i] = machine1.CleanedImage{Name: r.Name, FreedBytes: r.Freed}
	}
	return []any{out}, nil
}
