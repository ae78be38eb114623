package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"machined/transfer/oci"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registrySource fetches an image from a registry (OCI distribution specification).
type registrySource struct {
	manifests, blobs *client
	base             string // URL of the repository
	version          string
}

// openRegistry logs in where the registry wants that.
func (e *engine) openRegistry(ctx context.Context, ref oci.Reference, login authn.AuthConfig) (oci.Source, error) {
	options := []name.Option{name.WeakValidation}
	if ref.Protocol == "http" {
		options = append(options, name.Insecure)
	}
	repository, err := name.NewRepository(ref.Registry+"/"+ref.Repository, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := &registrySource{manifests: newClient(e.StallTimeout), blobs: newClient(e.StallTimeout), version: ref.Version()}
	guard := &guardedTransport{inner: s.blobs.http.Transport, plain: ref.Protocol == "http", secure: ref.Protocol == "https"}
	auth := authn.FromConfig(login)
	if login == (authn.AuthConfig{}) {
		auth = authn.Anonymous
	}
	rt, err := transport.NewWithContext(ctx, repository.Registry, auth, transport.NewUserAgent(guard, userAgent), []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, registryError(err)
	}
	for _, c := range []*client{s.manifests, s.blobs} {
		c.http.Transport = rt
	}
	s.manifests.accept = oci.Accept
	s.blobs.accept = "*/*"
	s.base = repository.Scheme() + "://" + repository.RegistryStr() + "/v2/" + repository.RepositoryStr()
	return s, nil
}

// Root is for oci.Source.
func (s *registrySource) Root(ctx context.Context) ([]byte, types.MediaType, error) {
	d, err := s.manifests.get(ctx, s.base+"/manifests/"+s.version, nil)
	if err != nil {
		return nil, "", registryError(err)
	}
	defer d.closeBody()
	data, err := io.ReadAll(io.LimitReader(d, oci.MetadataMax+1))
	if err != nil {
		return nil, "", registryError(err)
	}
	kind, _, _ := strings.Cut(d.kind, ";")
	return data, types.MediaType(strings.TrimSpace(kind)), nil
}

// Blob is for oci.Source.
func (s *registrySource) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	c, place := s.blobs, "/blobs/"
	if d.MediaType.IsIndex() || d.MediaType.IsImage() {
		c, place = s.manifests, "/manifests/"
	}
	got, err := c.get(ctx, s.base+place+d.Digest.String(), nil)
	if err != nil {
		return nil, registryError(err)
	}
	return got, nil
}

// Close is for oci.Source.
func (s *registrySource) Close() error {
	s.blobs.http.CloseIdleConnections()
	return nil
}

// registryError adds to an error what a person can do about it.
func registryError(err error) error {
	code := 0
	var status *statusError
	var answer *transport.Error
	switch {
	case errors.As(err, &status):
		code = status.code
	case errors.As(err, &answer):
		code = answer.StatusCode
	}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &registryFailure{err, "the registry wants another login than it got (docker login, podman login), or there is no such image"}
	case http.StatusNotFound:
		return &registryFailure{err, "the registry has no such image"}
	case http.StatusTooManyRequests:
		return &registryFailure{err, "the registry wants fewer requests; a login may help"}
	}
	return &registryFailure{err: err}
}

// registryFailure is an error that may quote a server, on one line of bounded length.
type registryFailure struct {
	err  error
	hint string
}

const errorTextMax = 500

func (r *registryFailure) Error() string {
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, r.err.Error())
	if len(text) > errorTextMax {
		text = strings.ToValidUTF8(text[:errorTextMax], "") + "…"
	}
	if r.hint != "" {
		text = r.hint + ": " + text
	}
	return text
}

func (r *registryFailure) Unwrap() error { return r.err }

// loginMax bounds what a server may say when we log in, in bytes.
const loginMax = 1 << 20

// guardedTransport keeps to encrypted connections, but to this host or where plain
// ones are asked for, and bounds the answers to requests for logins.
type guardedTransport struct {
	inner         http.RoundTripper
	plain, secure bool
}

// RoundTrip is for http.RoundTripper.
func (g *guardedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain && (g.secure || !loopback(req.URL.Hostname())) {
		return nil, fmt.Errorf("%w: the connection to %s would not be encrypted", ErrNotSupported, req.URL.Host)
	}
	resp, err := g.inner.RoundTrip(req)
	if err == nil && req.Header.Get("Accept") == "" { // the library's own
		resp.Body = limitedBody{io.LimitReader(resp.Body, loginMax), resp.Body}
	}
	return resp, err
}

type limitedBody struct {
	io.Reader
	io.Closer
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// directorySource is a registry as a directory on this host: what a registry file
// with the protocol "file" names. The names of files are the paths of URLs.
type directorySource struct {
	root          *os.Root
	repo, version string
}

func openDirectory(ref oci.Reference) (oci.Source, error) {
	root, err := os.OpenRoot(directoryOf(ref))
	if err != nil {
		return nil, err
	}
	return &directorySource{root: root, repo: filepath.Join("v2", ref.Repository), version: ref.Version()}, nil
}

func directoryOf(ref oci.Reference) string {
	if filepath.IsAbs(ref.Registry) {
		return ref.Registry
	}
	return "/"
}

func (s *directorySource) open(parts ...string) (*os.File, error) {
	f, err := s.root.Open(filepath.Join(append([]string{s.repo}, parts...)...))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %q is not a regular file", ErrInvalid, f.Name())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Root is for oci.Source.
func (s *directorySource) Root(context.Context) ([]byte, types.MediaType, error) {
	f, err := s.open("manifests", s.version)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, oci.MetadataMax+1))
	return data, "", err
}

// Blob is for oci.Source.
func (s *directorySource) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.MediaType.IsIndex() || d.MediaType.IsImage() {
		return s.open("manifests", d.Digest.String())
	}
	return s.open("blobs", d.Digest.String())
}

// Close is for oci.Source.
func (s *directorySource) Close() error { return s.root.Close() }
