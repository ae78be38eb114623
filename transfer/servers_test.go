package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/gzip"
)

// gzipped compresses with a library that is not ours.
func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

// serve serves files by their path, and what handle wants before.
func serve(t *testing.T, files map[string][]byte, handle func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if handle != nil && handle(w, r) {
			return
		}
		data, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestBadServers pulls from servers that misbehave: one line says why, and
// nothing is left of it.
func TestBadServers(t *testing.T) {
	needRoot(t)
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	plain := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x", Xattrs: map[string]string{"user.noise": noise(3000)}}) //nolint:staticcheck // the short way
	bulk := gzipped(t, plain)
	var xz bytes.Buffer
	w, err := NewWriter(&xz, XZ)
	must(t, err)
	_, err = w.Write(plain)
	must(t, err)
	must(t, w.Close())
	files := map[string][]byte{"/os.tar.gz": data, "/bulk.tar.gz": bulk, "/page.tar.gz": []byte("<html><body>Please log in</body></html>")}
	answer := func(do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".tar.gz") {
				return false
			}
			do(w, r)
			return true
		}
	}
	for _, test := range []struct {
		name, file string
		handle     func(http.ResponseWriter, *http.Request) bool
		want       string
	}{
		{"404", "/missing.tar.gz", nil, "failed with code 404"},
		{"500", "/os.tar.gz", answer(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }), "failed with code 500"},
		{"redirect loop", "/os.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, 302) }), "redirected more than 20 times"},
		{"redirect to file", "/os.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "file:///etc/passwd", 302) }), "redirected to file:///etc/passwd"},
		{"longer than it says", "/os.tar.gz", answer(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(data)-20, data)
			_ = conn.Close()
		}), "ends too early"},
		{"shorter than it says, no ranges", "/bulk.tar.gz", answer(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(bulk)))
			_, _ = w.Write(bulk[:len(bulk)/2])
		}), "cannot resume"},
		{"shorter than it says, through a program", "/os.tar.xz", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".tar.xz") {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(xz.Len()))
			_, _ = w.Write(xz.Bytes()[:xz.Len()/2])
			return true
		}, "cannot resume"},
		{"resumes elsewhere", "/bulk.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(bulk)-1, len(bulk)))
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(bulk)))
			_, _ = w.Write(bulk[:len(bulk)/2])
		}), "resumed at 7"},
		{"resumes another file", "/bulk.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"one"`)
			if r.Header.Get("Range") != "" {
				w.Header().Set("ETag", `"two"`)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", len(bulk)/2, len(bulk)-1, len(bulk)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(bulk[len(bulk)/2:])
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(bulk)))
			_, _ = w.Write(bulk[:len(bulk)/2])
		}), "has changed on the server"},
		{"gone when resumed", "/bulk.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				http.Error(w, "no", 503)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(bulk)))
			_, _ = w.Write(bulk[:len(bulk)/2])
		}), "failed with code 503"},
		{"closed", "/os.tar.gz", answer(func(w http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_ = conn.Close()
			}
		}), "the server closed the connection without an answer"},
		{"silent", "/os.tar.gz", answer(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}), "less than 30 bytes a second"},
		{"no answer", "/os.tar.gz", answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "the server did not answer within 300ms"},
		{"a page instead", "/page.tar.gz", nil, "bad archive"},
		{"endless header", "/os.tar.gz", answer(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}), "header"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			base := serve(t, files, test.handle)
			root := t.TempDir()
			req := request(t, PullTar, root, "b")
			req.Remote, req.StallTimeout = base+test.file, 300*time.Millisecond
			err := Run(context.Background(), req)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("pull = %v, want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), base+test.file) > 1 {
				t.Errorf("error %q is not one line that names the URL once", err)
			}
			nothingIn(t, root)
		})
	}
}

// TestSlowServer lets a server drip until it is given up.
func TestSlowServer(t *testing.T) {
	needRoot(t)
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	base := serve(t, map[string][]byte{}, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".tar.gz") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		first := 0
		if r.Header.Get("Range") != "" {
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(data)-1, len(data)))
			w.Header().Set("Content-Length", fmt.Sprint(len(data)-first))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(data[first : first+1])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	})
	root := t.TempDir()
	req := request(t, PullTar, root, "b")
	req.Remote, req.StallTimeout = base+"/os.tar.gz", 100*time.Millisecond
	err := Run(context.Background(), req)
	if err == nil || !strings.Contains(err.Error(), "less than 30 bytes a second") {
		t.Errorf("pull = %v, want the server given up", err)
	}
	nothingIn(t, root)
}

// noise is text that does not compress well.
func noise(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%x", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))
	}
	return b.String()[:n]
}

// nothingIn fails when a failed transfer has left something.
func nothingIn(t *testing.T, root string) {
	t.Helper()
	left, err := os.ReadDir(root)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestVerify pulls with each kind of checksum file and signature, good and bad.
func TestVerify(t *testing.T) {
	needRoot(t)
	old := &packet.Config{Time: func() time.Time { return time.Now().Add(-48 * time.Hour) }, KeyLifetimeSecs: 3600}
	entity := func(config *packet.Config) *openpgp.Entity {
		e, err := openpgp.NewEntity("test", "", "test@example.org", config)
		must(t, err)
		return e
	}
	key, stranger, expired := entity(nil), entity(nil), entity(old)
	var keys bytes.Buffer
	must(t, key.Serialize(&keys))
	must(t, expired.Serialize(&keys))
	ring := filepath.Join(t.TempDir(), "ring")
	must(t, os.WriteFile(ring, keys.Bytes(), 0o644))
	sign := func(by *openpgp.Entity, data string, config *packet.Config) []byte {
		var out bytes.Buffer
		must(t, openpgp.DetachSign(&out, by, strings.NewReader(data), config))
		return out.Bytes()
	}
	armor := func(data string) []byte {
		var out bytes.Buffer
		must(t, openpgp.ArmoredDetachSign(&out, key, strings.NewReader(data), nil))
		return out.Bytes()
	}
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	settings := []byte("[Exec]\nBoot=no\n")
	line := func(data []byte, name string) string { return fmt.Sprintf("%x *%s\n", sha256.Sum256(data), name) }
	sums := line(data, "os.tar.gz") + line(settings, "os.nspawn")
	other := line(settings, "os.tar.gz")
	single := line(data, "os.tar.gz")
	for _, test := range []struct {
		name   string
		verify Verify
		files  map[string]string
		want   string // "" for success
		nspawn bool
	}{
		{"nothing asked, nothing there", VerifyNo, nil, "", false},
		{"nothing asked, wrong sums there", VerifyNo, map[string]string{"SHA256SUMS": other, "os.nspawn": string(settings)}, "", true},
		{"checksum", VerifyChecksum, map[string]string{"SHA256SUMS": sums, "os.nspawn": string(settings)}, "", true},
		{"checksum of its own", VerifyChecksum, map[string]string{"os.tar.gz.sha256": single}, "", false},
		{"checksum wrong", VerifyChecksum, map[string]string{"SHA256SUMS": other}, "SHA256 checksum of", false},
		{"checksum of settings wrong", VerifyChecksum, map[string]string{"SHA256SUMS": sums, "os.nspawn": "[Exec]\nBoot=yes\n"}, "SHA256 checksum of", false},
		{"not in the list", VerifyChecksum, map[string]string{"SHA256SUMS": line(data, "else.tar")}, "no entry", false},
		{"no list", VerifyChecksum, nil, "no checksum file", false},
		{"list broken", VerifyChecksum, map[string]string{"SHA256SUMS": "zzz\n"}, "malformed", false},
		{".gpg", VerifySignature, map[string]string{"SHA256SUMS": sums, "SHA256SUMS.gpg": string(sign(key, sums, nil))}, "", false},
		{".asc", VerifySignature, map[string]string{"os.tar.gz.sha256": single, "os.tar.gz.sha256.asc": string(armor(single))}, "", false},
		{".sig", VerifySignature, map[string]string{"SHA256SUMS": sums, "SHA256SUMS.sig": string(sign(key, sums, nil))}, "", false},
		{"no signature", VerifySignature, map[string]string{"SHA256SUMS": sums}, "no signature", false},
		{"unknown key", VerifySignature, map[string]string{"SHA256SUMS": sums, "SHA256SUMS.gpg": string(sign(stranger, sums, nil))}, "signature", false},
		{"expired key", VerifySignature, map[string]string{"SHA256SUMS": sums, "SHA256SUMS.gpg": string(sign(expired, sums, old))}, "expired", false},
		{"over another file", VerifySignature, map[string]string{"SHA256SUMS": sums, "SHA256SUMS.gpg": string(sign(key, other, nil))}, "signature", false},
		{"good signature, wrong sum", VerifySignature, map[string]string{"SHA256SUMS": other, "SHA256SUMS.gpg": string(sign(key, other, nil))}, "SHA256 checksum of", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{"/os.tar.gz": data}
			for name, text := range test.files {
				files["/"+name] = []byte(text)
			}
			root := t.TempDir()
			req := request(t, PullTar, root, "b")
			req.Remote, req.Verify, req.Keyrings = serve(t, files, nil)+"/os.tar.gz", test.verify, []string{ring}
			err := Run(context.Background(), req)
			if test.want == "" {
				must(t, err)
				_, err := os.Stat(filepath.Join(root, "b/etc/x"))
				must(t, err)
				if _, err := os.Stat(filepath.Join(root, "b.nspawn")); (err == nil) != test.nspawn {
					t.Errorf("settings file: %v, want it %v", err, test.nspawn)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("pull = %v, want an error with %q", err, test.want)
			}
			nothingIn(t, root)
		})
	}
}
