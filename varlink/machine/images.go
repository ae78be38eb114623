package machine

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"machined/image"
	"machined/varlink"
)

// Images is what the services ask of the image store.
type Images interface {
	List(ctx context.Context) ([]image.Image, error)
	Get(ctx context.Context, name string) (image.Image, error)
	Metadata(ctx context.Context, name string) (image.Metadata, error)
	Rename(ctx context.Context, name, newName string) error
	Clone(ctx context.Context, name, newName string, readOnly bool) error
	Remove(ctx context.Context, name string) error
	SetReadOnly(ctx context.Context, name string, readOnly bool) error
	SetLimit(ctx context.Context, name string, limit uint64) error
	SetPoolLimit(ctx context.Context, limit uint64) error
	Clean(ctx context.Context, mode image.CleanMode) ([]image.Removed, error)
}

func (s *Services) imageInterface() varlink.Interface {
	clean := method(s.cleanPool)
	clean.NeedsMore = true
	return varlink.Interface{
		Name:        "io.systemd.MachineImage",
		Description: imageIDL,
		Methods: map[string]varlink.Method{
			"List":         method(s.listImages),
			"Update":       method(s.updateImage),
			"Clone":        method(s.cloneImage),
			"Remove":       method(s.removeImage),
			"SetPoolLimit": method(s.setPoolLimit),
			"CleanPool":    clean,
		},
	}
}

type imageDescription struct {
	Name           string   `json:"name"`
	Path           string   `json:"path,omitempty"`
	Type           string   `json:"type"`
	Class          string   `json:"class"`
	ReadOnly       bool     `json:"readOnly"`
	Created        int64    `json:"creationTimestamp,omitempty"`     // µs
	Modified       int64    `json:"modificationTimestamp,omitempty"` // µs
	Usage          *uint64  `json:"usage,omitempty"`
	UsageExclusive *uint64  `json:"usageExclusive,omitempty"`
	Limit          *uint64  `json:"limit,omitempty"`
	LimitExclusive *uint64  `json:"limitExclusive,omitempty"`
	Hostname       string   `json:"hostname,omitempty"`
	MachineID      string   `json:"machineId,omitempty"`
	MachineInfo    []string `json:"machineInfo,omitempty"`
	OSRelease      []string `json:"OSRelease,omitempty"`
}

func describeImage(img image.Image) imageDescription {
	usec := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMicro()
	}
	known := func(n uint64) *uint64 {
		if n == image.Unknown {
			return nil
		}
		return &n
	}
	class := img.Class
	if class == "" {
		class = image.ClassMachine
	}
	return imageDescription{
		Name: img.Name, Path: img.Path, Type: string(img.Type), Class: string(class), ReadOnly: img.ReadOnly,
		Created: usec(img.Created), Modified: usec(img.Modified),
		Usage: known(img.Usage), UsageExclusive: known(img.UsageExclusive),
		Limit: known(img.Limit), LimitExclusive: known(img.LimitExclusive),
	}
}

func (s *Services) listImages(ctx context.Context, call *varlink.Call) (any, error) {
	name := call.Params.String("name")
	how := readMetadata(call.Params)
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	if name != nil {
		img, err := s.image(ctx, "name", *name)
		if err != nil {
			return nil, err
		}
		return s.listImage(ctx, call, img, how)
	}
	if !call.More {
		return nil, varlink.NewError(varlink.ErrorExpectedMore)
	}
	list, err := s.cfg.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	stream := call.Stream()
	for _, img := range list {
		d, err := s.listImage(ctx, call, img, how)
		if err != nil {
			return nil, err
		}
		if err := stream.Add(d); err != nil {
			return nil, err
		}
	}
	return stream.End(varlink.NewError(errNoSuchImage))
}

func (s *Services) image(ctx context.Context, parameter, name string) (image.Image, error) {
	if image.CheckName(name) != nil && name != image.HostName {
		return image.Image{}, varlink.InvalidParameter(parameter)
	}
	return s.cfg.Images.Get(ctx, name)
}

func (s *Services) listImage(ctx context.Context, call *varlink.Call, img image.Image, how metadata) (imageDescription, error) {
	d := describeImage(img)
	if how == metadataNo {
		return d, nil
	}
	if err := s.authorize(ctx, call, nil, "inspect-images", details{"name", img.Name}); err != nil {
		return d, err
	}
	m, err := s.cfg.Images.Metadata(ctx, img.Name)
	if err != nil {
		if how == metadataGraceful {
			err = nil
		}
		return d, err
	}
	d.Hostname = m.Hostname
	if m.MachineID != ([16]byte{}) {
		d.MachineID = hex.EncodeToString(m.MachineID[:])
	}
	d.MachineInfo, d.OSRelease = m.MachineInfo.Lines(), m.OSRelease.Lines()
	return d, nil
}

// change is what the methods that change one image have in common.
func (s *Services) change(ctx context.Context, call *varlink.Call, name string, d ...string) error {
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return err
	}
	if _, err := s.image(ctx, "name", name); err != nil {
		return err
	}
	return s.authorize(ctx, call, nil, "manage-images", append(details{"image", name}, d...))
}

func (s *Services) newName(call *varlink.Call) *string {
	name := call.Params.String("newName")
	if name != nil && image.CheckName(*name) != nil {
		call.Params.Invalid("newName")
	}
	return name
}

// updateImage renames, then sets read-only and limit; of these two both are
// tried, and the first error is told.
func (s *Services) updateImage(ctx context.Context, call *varlink.Call) (any, error) {
	name := call.Params.RequiredString("name")
	newName := s.newName(call)
	readOnly, limit := call.Params.Bool("readOnly"), call.Params.Uint64("limit")
	if err := s.change(ctx, call, name, "verb", "update"); err != nil {
		return nil, err
	}
	if newName != nil {
		if err := s.cfg.Images.Rename(ctx, name, *newName); err != nil {
			return nil, err
		}
		name = *newName
	}
	var errs []error
	if readOnly != nil {
		errs = append(errs, s.cfg.Images.SetReadOnly(ctx, name, *readOnly))
	}
	if limit != nil {
		errs = append(errs, s.cfg.Images.SetLimit(ctx, name, *limit))
	}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (s *Services) cloneImage(ctx context.Context, call *varlink.Call) (any, error) {
	name := call.Params.RequiredString("name")
	call.Params.Required("newName")
	newName := s.newName(call)
	readOnly := call.Params.Flag("readOnly")
	if err := s.change(ctx, call, name, "verb", "clone", "new_name", value(newName)); err != nil {
		return nil, err
	}
	done, err := s.operation(errImageTooManyOperations)
	if err != nil {
		return nil, err
	}
	defer done()
	return nil, s.cfg.Images.Clone(ctx, name, *newName, readOnly)
}

func (s *Services) removeImage(ctx context.Context, call *varlink.Call) (any, error) {
	name := call.Params.RequiredString("name")
	if err := s.change(ctx, call, name, "verb", "remove"); err != nil {
		return nil, err
	}
	done, err := s.operation(errImageTooManyOperations)
	if err != nil {
		return nil, err
	}
	defer done()
	return nil, s.cfg.Images.Remove(ctx, name)
}

// operation takes one of the places for long operations.
func (s *Services) operation(full string) (done func(), err error) {
	select {
	case s.copies <- struct{}{}:
		return func() { <-s.copies }, nil
	default:
		return nil, varlink.NewError(full)
	}
}

func (s *Services) setPoolLimit(ctx context.Context, call *varlink.Call) (any, error) {
	call.Params.Required("limit")
	limit := call.Params.Uint64("limit")
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, call, nil, "manage-images", details{"verb", "set_pool_limit"}); err != nil {
		return nil, err
	}
	return nil, s.cfg.Images.SetPoolLimit(ctx, *limit)
}

type cleaned struct {
	Name  string  `json:"name"`
	Usage *uint64 `json:"usageExclusive,omitempty"`
}

func (s *Services) cleanPool(ctx context.Context, call *varlink.Call) (any, error) {
	mode := call.Params.RequiredString("mode")
	clean := image.CleanMode(mode)
	if clean != image.CleanHidden && clean != image.CleanAll {
		call.Params.Invalid("mode")
	}
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, call, nil, "manage-images", details{"mode", mode, "verb", "clean_pool"}); err != nil {
		return nil, err
	}
	removed, err := s.cfg.Images.Clean(ctx, clean)
	stream := call.Stream()
	for _, r := range removed {
		entry := cleaned{Name: r.Name}
		if r.Freed != image.Unknown {
			entry.Usage = &r.Freed
		}
		if serr := stream.Add(entry); serr != nil {
			return nil, errors.Join(err, serr)
		}
	}
	if err != nil {
		return nil, err
	}
	return stream.End(varlink.NewError(errNoSuchImage))
}

const imageIDL = `# The images of machines on this host.
interface io.systemd.MachineImage

# Whether List looks inside the images; graceful leaves out what it can't get.
type AcquireMetadata(
	no,
	yes,
	graceful
)

# Which images CleanPool removes.
type CleanPoolMode(
	all,
	hidden
)

# Describes one image, or, with 'more', all of them.
method List(
	name: ?string,
	allowInteractiveAuthentication: ?bool,
	acquireMetadata: ?AcquireMetadata
) -> (
	name: string,
	path: ?string,
	type: string,
	class: string,
	readOnly: bool,
	creationTimestamp: ?int,
	modificationTimestamp: ?int,
	usage: ?int,
	usageExclusive: ?int,
	limit: ?int,
	limitExclusive: ?int,
	hostname: ?string,
	machineId: ?string,
	machineInfo: ?[]string,
	OSRelease: ?[]string
)

# Renames an image, marks it, or limits its size.
method Update(
	name: string,
	allowInteractiveAuthentication: ?bool,
	newName: ?string,
	readOnly: ?bool,
	limit: ?int
) -> ()

# Copies an image.
method Clone(
	name: string,
	allowInteractiveAuthentication: ?bool,
	newName: string,
	readOnly: ?bool
) -> ()

# Removes an image.
method Remove(
	name: string,
	allowInteractiveAuthentication: ?bool
) -> ()

# Limits the size of all images together.
method SetPoolLimit(
	allowInteractiveAuthentication: ?bool,
	limit: int
) -> ()

# Removes images; needs 'more'.
method CleanPool(
	allowInteractiveAuthentication: ?bool,
	mode: CleanPoolMode
) -> (
	name: string,
	usageExclusive: ?int
)

# No image matches.
error NoSuchImage()

# Too many operations are under way.
error TooManyOperations()

# The operation is not supported on this image.
error NotSupported()
`
