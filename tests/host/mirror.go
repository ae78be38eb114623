package host

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"
)

// mirrorRelay connects the host's port 8001 to the socket by which the test reaches out.
const mirrorRelay = `
import socket, threading
def pump(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
server = socket.create_server(("127.0.0.1", 8001))
while True:
    client = server.accept()[0]
    out = socket.socket(socket.AF_UNIX); out.connect("/run/mirror.sock")
    for pair in ((client, out), (out, client)): threading.Thread(target=pump, args=pair, daemon=True).start()
`

// Mirror lets the host, which has no way out, fetch from this machine's Debian mirror
// and returns its URL inside.
func (h *Host) Mirror(t testing.TB) string {
	t.Helper()
	target, err := url.Parse(mirror())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", h.Path("/run/mirror.sock"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Path = strings.TrimPrefix(r.In.URL.Path, "/debian")
		r.Out.URL.RawPath = ""
		r.SetURL(target)
	}}
	srv := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(listener) }()
	t.Cleanup(func() { _ = srv.Close() })
	h.WriteFile(t, "/root/mirror.py", mirrorRelay, 0o644)
	h.Start(t, "python3", "/root/mirror.py")
	const inside = "http://127.0.0.1:8001/debian"
	Eventually(t, 20*time.Second, func() error {
		if r := h.Try("curl", "-sf", "-o", "/dev/null", inside+"/dists/"+string(h.Suite)+"/InRelease"); r.Exit != 0 {
			return net.ErrClosed
		}
		return nil
	})
	return inside
}
