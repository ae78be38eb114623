// Command ocitool is what tests make, serve and check OCI images with. It is built on
// go-containerregistry's own code, which the product only uses to log in.
//
//	ocitool serve ADDRESS [USER:PASSWORD]   a registry in memory; prints each request
//	ocitool build CONFIG TARGET LAYER.tar...  an image; TARGET is a reference, oci:DIR[:TAG] or docker-archive:FILE
//	ocitool check DIR|FILE                  a layout or an archive of one: prints its configuration
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("ocitool: too few arguments")
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		err = serve(args)
	case "build":
		err = build(args)
	case "check":
		err = check(args[0])
	default:
		err = fmt.Errorf("no command %q", os.Args[1])
	}
	if err != nil {
		log.Fatalf("ocitool: %v", err)
	}
}

func serve(args []string) error {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(args) > 1 {
			user, password, _ := r.BasicAuth()
			if user+":"+password != args[1] {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		fmt.Println(r.Method, r.URL.Path)
		inner.ServeHTTP(w, r)
	})
	return http.ListenAndServe(args[0], handler) //nolint:gosec // of a test
}

func build(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("build needs a configuration, a target and layers")
	}
	img := v1.Image(empty.Image)
	for _, file := range args[2:] {
		layer, err := tarball.LayerFromFile(file)
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", arch()
	if err := json.Unmarshal([]byte(args[0]), &file.Config); err != nil {
		return err
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest)
	target := args[1]
	if path, ok := strings.CutPrefix(target, "docker-archive:"); ok {
		tag, err := name.NewTag("test/image:1")
		if err != nil {
			return err
		}
		return tarball.WriteToFile(path, tag, img)
	}
	if path, ok := strings.CutPrefix(target, "oci:"); ok {
		at, err := layout.FromPath(path)
		if err != nil {
			at, err = layout.Write(path, empty.Index)
		}
		if err != nil {
			return err
		}
		return at.AppendImage(img)
	}
	login, _ := os.LookupEnv("OCITOOL_LOGIN")
	user, password, _ := strings.Cut(login, ":")
	ref, err := name.ParseReference(target)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: user, Password: password}))
}

func arch() string {
	out, err := exec.Command("uname", "-m").Output()
	if err == nil && strings.TrimSpace(string(out)) == "aarch64" {
		return "arm64"
	}
	return "amd64"
}

func check(path string) error {
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		dir, err := os.MkdirTemp("", "ocitool")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if out, err := exec.Command("tar", "-xf", path, "-C", dir).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", path, err, out)
		}
		path = dir
	}
	at, err := layout.FromPath(path)
	if err != nil {
		return err
	}
	index, err := at.ImageIndex()
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, m := range manifest.Manifests {
		img, err := index.Image(m.Digest)
		if err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		options := []validate.Option{}
		for _, l := range layers {
			if kind, err := l.MediaType(); err != nil || kind == types.OCILayerZStd {
				options = append(options, validate.Fast) // it knows nothing but gzip
			}
		}
		if err := validate.Image(img, options...); err != nil {
			return err
		}
		file, err := img.ConfigFile()
		if err != nil {
			return err
		}
		text, err := json.Marshal(file.Config)
		if err != nil {
			return err
		}
		fmt.Println(len(file.RootFS.DiffIDs), string(text))
	}
	return nil
}
