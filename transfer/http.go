package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// stallTimeout is how long a server may send less than slowest bytes a second.
	stallTimeout = 60 * time.Second
	slowest      = 30
	// maxResumes is how often one download is taken up again without any progress.
	maxResumes = 5
	// sideFileMax is the largest file beside an image, in bytes.
	sideFileMax = 1 << 20
)

// userAgent is what servers know us by.
const userAgent = "machine-importd"

// statusError is an answer of a server that is not the file.
type statusError struct {
	url  string
	code int
}

func (s *statusError) Error() string {
	if strings.HasPrefix(s.url, "file:") {
		return fmt.Sprintf("There is no file %s.", s.url)
	}
	return fmt.Sprintf("HTTP request to %s failed with code %d.", s.url, s.code)
}

// fetchError is a download that failed, other than by a server's word.
type fetchError struct {
	url string
	err error
}

func (f *fetchError) Error() string { return "download " + f.url + ": " + f.err.Error() }
func (f *fetchError) Unwrap() error { return f.err }

var (
	errNotModified = errors.New("not modified")
	errNoResume    = errors.New("the server cannot resume")
)

// client fetches files. It follows redirects within http and https only, and
// takes proxies from the environment.
type client struct {
	http   http.Client
	stall  time.Duration
	accept string // types that are asked for; "" any
}

// newClient returns a client that gives a server up after stall, stallTimeout when that is 0.
func newClient(stall time.Duration) *client {
	if stall == 0 {
		stall = stallTimeout
	}
	return &client{stall: stall, http: http.Client{CheckRedirect: checkRedirect, Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    30 * time.Second,
		ResponseHeaderTimeout:  stall,
		DisableCompression:     true, // the bytes themselves are checked
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}}}
}

// maxRedirects is how many redirects one request follows.
const maxRedirects = 20

// checkRedirect lets a request go on to where a server has sent it.
func checkRedirect(next *http.Request, before []*http.Request) error {
	switch {
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return fmt.Errorf("redirected to %s, and only http and https are followed", next.URL.Redacted())
	case len(before) > maxRedirects:
		return fmt.Errorf("redirected more than %d times", maxRedirects)
	}
	return nil
}

// download is a file being fetched. Reading it takes a broken connection up again.
type download struct {
	c       *client
	ctx     context.Context //nolint:containedctx // lives as long as one transfer
	url     string
	etag    string
	kind    string // Content-Type
	size    int64  // -1: not known
	mtime   time.Time
	off     int64
	body    io.ReadCloser
	resumes int
	cancel  context.CancelFunc
	stall   *time.Timer
	stalled atomic.Bool
	window  int64 // bytes since the timer was set
}

// get starts to fetch a file. ifNone are ETags of what is there already; it
// returns errNotModified and the ETag when the file is one of them.
func (c *client) get(ctx context.Context, rawURL string, ifNone []string) (*download, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("%w: URL %q", ErrInvalid, rawURL)
	}
	d := &download{c: c, ctx: ctx, url: rawURL, size: -1}
	if u.Scheme == "file" {
		f, err := os.Open(u.Path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil, &statusError{rawURL, http.StatusNotFound}
			}
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%w: %q is not a regular file", ErrInvalid, u.Path)
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		d.body, d.size, d.mtime = f, st.Size(), st.ModTime()
		return d, nil
	}
	if err := d.open(ifNone); err != nil {
		return d, err
	}
	return d, nil
}

func (d *download) open(ifNone []string) error {
	ctx, cancel := context.WithCancel(d.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		cancel()
		return fmt.Errorf("%w: URL %q: %w", ErrInvalid, d.url, err)
	}
	req.Header.Set("User-Agent", userAgent)
	if d.c.accept != "" {
		req.Header.Set("Accept", d.c.accept)
	}
	if len(ifNone) > 0 {
		req.Header.Set("If-None-Match", strings.Join(ifNone, ", "))
	}
	if d.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.off))
		if d.etag != "" && !strings.HasPrefix(d.etag, "W/") {
			req.Header.Set("If-Range", d.etag)
		}
	}
	resp, err := d.c.http.Do(req)
	if err != nil {
		cancel()
		return d.failed(err)
	}
	fail := func(err error) error {
		_ = resp.Body.Close()
		cancel()
		return err
	}
	switch {
	case resp.StatusCode == http.StatusNotModified && len(ifNone) > 0:
		d.etag = resp.Header.Get("ETag")
		return fail(errNotModified)
	case d.off > 0 && resp.StatusCode == http.StatusPartialContent:
		if start := rangeStart(resp.Header.Get("Content-Range")); start != d.off {
			return fail(&fetchError{d.url, fmt.Errorf("the server resumed at %d instead of %d", start, d.off)})
		}
		if etag := resp.Header.Get("ETag"); etag != "" && d.etag != "" && etag != d.etag {
			return fail(&fetchError{d.url, errors.New("the file has changed on the server meanwhile")})
		}
	case d.off > 0 && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		return fail(errNoResume)
	case resp.StatusCode != http.StatusOK:
		return fail(&statusError{d.url, resp.StatusCode})
	default:
		d.size = resp.ContentLength
		d.etag, d.kind = resp.Header.Get("ETag"), resp.Header.Get("Content-Type")
		d.mtime, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
	}
	d.body, d.cancel = resp.Body, cancel
	d.window = 0
	d.stalled.Store(false)
	d.stall = time.AfterFunc(d.c.stall, func() {
		d.stalled.Store(true)
		cancel()
	})
	return nil
}

// failed names the URL once: the library puts it into its errors too, and what it
// calls its parts.
func (d *download) failed(err error) error {
	var inner *url.Error
	at := ""
	if errors.As(err, &inner) {
		if u, parseErr := url.Parse(inner.URL); inner.URL != d.url && parseErr == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") {
			at = "at " + u.Redacted() + ": "
		}
		err = inner.Err
	}
	text := err.Error()
	for _, prefix := range []string{"net/http: ", "HTTP/1.x transport connection broken: ", "net/http: ", "http: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	switch {
	case errors.Is(err, io.EOF):
		text = "the server closed the connection without an answer"
	case strings.Contains(text, "timeout awaiting response headers"):
		text = fmt.Sprintf("the server did not answer within %v", d.c.stall)
	}
	return &fetchError{d.url, &worded{at + text, err}}
}

// rangeStart reads the start of a Content-Range, -1 when there is none.
func rangeStart(s string) int64 {
	s, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return -1
	}
	first, _, _ := strings.Cut(s, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (d *download) Read(b []byte) (int, error) {
	for {
		n, err := d.body.Read(b)
		d.off += int64(n)
		if n > 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				err = nil // it comes again with the next read
			}
			if errors.Is(err, io.EOF) && d.size >= 0 && d.off < d.size {
				err = nil // as above
			}
			if d.window += int64(n); d.stall != nil && float64(d.window) >= slowest*d.c.stall.Seconds() && d.stall.Stop() {
				d.stall.Reset(d.c.stall)
				d.window, d.resumes = 0, 0
			}
			return n, err
		}
		if err == nil || errors.Is(err, io.EOF) && (d.size < 0 || d.off >= d.size) {
			return n, err
		}
		if d.ctx.Err() != nil {
			return n, d.ctx.Err()
		}
		if d.stall == nil { // a local file
			return n, err
		}
		d.resumes++
		if d.stalled.Load() {
			err = fmt.Errorf("the server sent less than %d bytes a second for %v", slowest, d.c.stall)
		}
		if d.resumes > maxResumes || d.off == 0 {
			return n, &fetchError{d.url, fmt.Errorf("broken off after %d bytes: %w", d.off, err)}
		}
		d.closeBody()
		openErr := d.open(nil)
		if errors.Is(openErr, errNoResume) {
			return n, &fetchError{d.url, fmt.Errorf("broken off after %d bytes, and the server cannot resume: %w", d.off, err)}
		}
		if openErr != nil {
			return n, openErr
		}
	}
}

// Close is for io.Closer.
func (d *download) Close() error {
	d.closeBody()
	return nil
}

func (d *download) closeBody() {
	if d.stall != nil {
		d.stall.Stop()
	}
	if d.body != nil {
		_ = d.body.Close()
	}
	if d.cancel != nil {
		d.cancel()
	}
}

// fetchSmall fetches a whole file of at most sideFileMax bytes.
func (e *engine) fetchSmall(ctx context.Context, c *client, rawURL string) ([]byte, error) {
	d, err := c.get(ctx, rawURL, nil)
	if err != nil {
		return nil, err
	}
	defer d.closeBody()
	if d.size > sideFileMax {
		return nil, &fetchError{rawURL, fmt.Errorf("larger than %s", bytesText(sideFileMax))}
	}
	if d.size >= 0 {
		e.logf(Info, "Downloading %s for %s.", bytesText(d.size), rawURL)
	}
	data, err := io.ReadAll(io.LimitReader(d, sideFileMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > sideFileMax {
		return nil, &fetchError{rawURL, fmt.Errorf("larger than %s", bytesText(sideFileMax))}
	}
	e.acquired(int64(len(data)), rawURL)
	return data, nil
}

// notFound says whether an error is a server's word that there is no such file.
func notFound(err error) bool {
	var status *statusError
	return errors.As(err, &status) && (status.code == http.StatusNotFound || status.code == http.StatusGone || status.code == http.StatusForbidden)
}

// acquired tells that n bytes, as they are when unpacked, came from a URL.
func (e *engine) acquired(n int64, rawURL string) {
	e.logf(Info, "Acquired %s.", bytesText(n))
	e.logf(Info, "Download of %s complete.", rawURL)
}

// refused says whether an error is a server's answer, whatever it is.
func refused(err error) bool {
	var status *statusError
	return errors.As(err, &status)
}

// bytesText writes a size as people read it: "512B", "2.6M", "1M".
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + "B"
	}
	value, i := float64(n)/1024, 0
	for value >= 1024 && i < len(units)-1 {
		value, i = value/1024, i+1
	}
	tenths := int64(value * 10)
	if tenths%10 == 0 {
		return fmt.Sprintf("%d%c", tenths/10, units[i])
	}
	return fmt.Sprintf("%d.%d%c", tenths/10, tenths%10, units[i])
}

// spanText writes a time in whole seconds as people read it: "2min 43s".
func spanText(d time.Duration) string {
	s := int64(d / time.Second)
	if s <= 0 {
		return "0"
	}
	var parts []string
	for _, unit := range []struct {
		name string
		size int64
	}{{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}} {
		if n := s / unit.size; n > 0 {
			parts = append(parts, strconv.FormatInt(n, 10)+unit.name)
			s %= unit.size
		}
	}
	return strings.Join(parts, " ")
}
