package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machined/image"
	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// TestSidesThatCannotBeHad: an image comes without its settings when a server does
// not give them, for whatever reason, as with stock; not when they are listed.
func TestSidesThatCannotBeHad(t *testing.T) {
	needRoot(t)
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	sum := func(name string, content []byte) string {
		return strings.TrimPrefix(digestOf(content), "sha256:") + "  " + name + "\n"
	}
	for name, answer := range map[string]http.HandlerFunc{
		"403":           func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) },
		"503":           func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) },
		"redirect loop": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"too large":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, sideFileMax+1)) },
		"silent":        func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		for _, listed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s listed=%v", name, listed), func(t *testing.T) {
				t.Parallel()
				files := map[string][]byte{"/os.tar.gz": data, "/SHA256SUMS": []byte(sum("os.tar.gz", data))}
				if listed {
					files["/SHA256SUMS"] = append(files["/SHA256SUMS"], sum("os.nspawn", []byte("[Exec]\n"))...)
				}
				base := serve(t, files, func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, ".nspawn") {
						return false
					}
					answer(w, r)
					return true
				})
				root := t.TempDir()
				var said logs
				req := request(t, PullTar, root, "os")
				req.Remote, req.StallTimeout, req.Verify, req.Log = base+"/os.tar.gz", 300*time.Millisecond, VerifyChecksum, said.add
				err := Run(context.Background(), req)
				if listed && name != "403" { // which many servers say where there is no file
					if err == nil {
						t.Error("an image whose listed settings cannot be had was pulled")
					}
					nothingIn(t, root)
					return
				}
				must(t, err)
				if _, err := os.Stat(filepath.Join(root, "os/etc/x")); err != nil || !said.has("Settings file could not be retrieved, proceeding without.") {
					t.Errorf("image: %v, told %q", err, said.lines)
				}
				if _, err := os.Stat(filepath.Join(root, "os.nspawn")); err == nil {
					t.Error("there is a settings file")
				}
			})
		}
	}
}

// TestChecksumsInAnotherPlace: where the server fails to give one kind of checksum
// file, the other one counts.
func TestChecksumsInAnotherPlace(t *testing.T) {
	needRoot(t)
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	sums := strings.TrimPrefix(digestOf(data), "sha256:") + "  os.tar.gz\n"
	base := serve(t, map[string][]byte{"/os.tar.gz": data, "/SHA256SUMS": []byte(sums)}, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			http.Error(w, "no", http.StatusInternalServerError)
			return true
		}
		return false
	})
	req := request(t, PullTar, t.TempDir(), "os")
	req.Remote, req.Verify = base+"/os.tar.gz", VerifyChecksum
	must(t, Run(context.Background(), req))
}

// TestOCISidesStay: settings that lie where an image is pulled to are somebody's own,
// unless the pull is forced.
func TestOCISidesStay(t *testing.T) {
	needRoot(t)
	host := testRegistry(t, nil)
	push(t, host, "team/app", ociImage(t, layerOf(t, "usr/", "usr/app")))
	root := poolDir(t)
	settings := filepath.Join(root, "app.nspawn")
	must(t, os.WriteFile(settings, []byte("mine"), 0o644))
	var said logs
	must(t, pullOCI(t, root, host+"/team/app", func(r *Request) { r.Local, r.Log = "app", said.add }))
	got, err := os.ReadFile(settings)
	must(t, err)
	if string(got) != "mine" || !said.has("already exists, not replacing") {
		t.Errorf("settings = %q, told %q", got, said.lines)
	}
	if _, err := os.Stat(filepath.Join(root, "app.oci-config")); err != nil {
		t.Error(err)
	}
	must(t, pullOCI(t, root, host+"/team/app", func(r *Request) { r.Local, r.Force = "app", true }))
	if got, err := os.ReadFile(settings); err != nil || !strings.Contains(string(got), "[Exec]") {
		t.Errorf("settings after a forced pull = %q, %v", got, err)
	}
	clean(t, root)
}

// TestArmedAttributes: what would have overlayfs read an image's clones as layers of
// an archive's own, and what says something of ours, does not come in with it.
func TestArmedAttributes(t *testing.T) {
	needRoot(t)
	attributes := map[string]string{
		"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/etc", "trusted.machined.diffid": "sha256:0",
		"user.machined.verified": "signature", "user.kept": "yes", "trusted.kept": "yes", "user.overlay.opaque": "y",
	}
	records := map[string]string{"LIBARCHIVE.xattr.trusted%2Eoverlay.metacopy": "eQ"}
	for name, value := range attributes {
		records[xattrRecord+name] = value
	}
	data := archive(t, &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, PAXRecords: records},
		&tar.Header{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755, PAXRecords: records},
		&tar.Header{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o644, PAXRecords: records})
	root := poolDir(t)
	file := filepath.Join(t.TempDir(), "a.tar")
	must(t, os.WriteFile(file, data, 0o644))
	f, err := os.Open(file)
	must(t, err)
	defer func() { _ = f.Close() }()
	var said logs
	req := request(t, ImportTar, root, "a")
	req.File, req.Log = f, said.add
	must(t, Run(context.Background(), req))
	if !said.has("are left out") {
		t.Errorf("told %q", said.lines)
	}
	for _, path := range []string{"a", "a/dir", "a/dir/file"} {
		for name := range attributes {
			var value [16]byte
			_, err := unix.Getxattr(filepath.Join(root, path), name, value[:])
			keep := strings.HasSuffix(name, ".kept") || strings.HasPrefix(name, "user.overlay.")
			if keep != (err == nil) {
				t.Errorf("%s of %s: %v, want kept %v", name, path, err, keep)
			}
		}
		if _, err := unix.Getxattr(filepath.Join(root, path), "trusted.overlay.metacopy", nil); err == nil {
			t.Errorf("%s has trusted.overlay.metacopy", path)
		}
	}
}

// TestForcedOverOneInUse: an image in use is not replaced, and nothing is fetched for that.
func TestForcedOverOneInUse(t *testing.T) {
	needRoot(t)
	data := gzipped(t, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/new"}))
	asked := 0
	base := serve(t, map[string][]byte{"/os.tar.gz": data}, func(http.ResponseWriter, *http.Request) bool { asked++; return false })
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "os/etc"), 0o755))
	req := request(t, PullTar, root, "os")
	req.Remote, req.Force = base+"/os.tar.gz", true
	locks := pathlock.Default
	locks.Dir = req.LockDir
	lock, err := locks.Image(filepath.Join(root, "os"), true)
	must(t, err)
	err = Run(context.Background(), req)
	lock.Close()
	if !errors.Is(err, image.ErrBusy) || err.Error() != "Image 'os' is currently busy, not replacing." || asked > 0 {
		t.Errorf("pull = %v after %d requests", err, asked)
	}
	must(t, Run(context.Background(), req))
	if _, err := os.Stat(filepath.Join(root, "os/etc/new")); err != nil {
		t.Error(err)
	}
	req.Force = false
	if err := Run(context.Background(), req); !errors.Is(err, image.ErrExists) || err.Error() != "Image 'os' already exists." {
		t.Errorf("pull of one that is there = %v", err)
	}
}

// TestBeside: files beside an image do not get what its own URL is signed with.
func TestBeside(t *testing.T) {
	for url, want := range map[string]string{
		"http://h/a/b.tar?sig=x#f": "http://h/a/SHA256SUMS", "http://h/b.tar": "http://h/SHA256SUMS", "http://h/a%2Fb/c": "http://h/a%2Fb/SHA256SUMS",
	} {
		if got, err := beside(url, "SHA256SUMS"); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", url, got, err, want)
		}
	}
}
