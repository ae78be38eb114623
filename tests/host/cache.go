package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CacheDir is where trees are kept between runs; outside the source tree.
func CacheDir() string {
	if d := os.Getenv("MACHINED_TEST_CACHE"); d != "" {
		return d
	}
	return "/var/cache/machined-tests"
}

// staleAfter is how long a tree of an old recipe is kept after its last use.
const staleAfter = 14 * 24 * time.Hour

// ensure returns the tree of a recipe, made if the cache has none. Processes
// that want the same tree wait for the first of them.
func ensure(ctx context.Context, r recipe) (string, error) {
	dir := CacheDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := flock(filepath.Join(dir, r.name()+".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	tree := filepath.Join(dir, r.name())
	if _, err := os.Stat(tree); err == nil {
		now := time.Now()
		return tree, os.Chtimes(tree, now, now)
	}
	prune(dir, r)
	tmp := tree + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := bootstrap(ctx, r, tmp); err != nil {
		return "", errors.Join(fmt.Errorf("build tree %q: %w", r.name(), err), os.RemoveAll(tmp))
	}
	return tree, os.Rename(tmp, tree)
}

// flock takes a lock that closing the file gives back.
func flock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(os.NewSyscallError("flock", err), f.Close())
	}
	return f, nil
}

func bootstrap(ctx context.Context, r recipe, dir string) error {
	if r.base != nil {
		return extend(ctx, r, dir)
	}
	debs := filepath.Join(CacheDir(), "debs-"+string(r.suite))
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	// Two debootstraps would write into each other's downloads.
	lock, err := flock(debs + ".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	log, err := os.Create(filepath.Join(CacheDir(), r.name()+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	steps := [][]string{
		{"debootstrap", "--variant=minbase", "--cache-dir=" + debs, "--include=" + strings.Join(r.packages, ","), string(r.suite), dir, mirror()},
		{"chroot", dir, "/bin/sh", "-ec", r.script},
	}
	return buildSteps(ctx, log, steps)
}

// extend installs packages into a copy of another recipe's tree.
func extend(ctx context.Context, r recipe, dir string) error {
	base, err := ensure(ctx, *r.base)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(CacheDir(), r.name()+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	const install = `cp -a --reflink=auto "$1" "$2"
mount -t proc proc "$2/proc"
mount --rbind /dev "$2/dev"
cp -L --remove-destination /etc/resolv.conf "$2/etc/resolv.conf"
cp -L /etc/hosts "$2/etc/hosts"
cp "$2/etc/nsswitch.conf" "$2/etc/nsswitch.keep" # no daemon answers its modules there
sed -i 's/^hosts:.*/hosts: files dns/' "$2/etc/nsswitch.conf"
printf '#!/bin/sh\nexit 101\n' >"$2/usr/sbin/policy-rc.d"; chmod 755 "$2/usr/sbin/policy-rc.d"
echo "deb $3 $4 main" >"$2/etc/apt/sources.list"
export DEBIAN_FRONTEND=noninteractive; dir=$2; shift 4
chroot "$dir" apt-get -q update
chroot "$dir" apt-get -qy --no-install-recommends install "$@"
mv "$dir/etc/nsswitch.keep" "$dir/etc/nsswitch.conf"
rm -f "$dir/usr/sbin/policy-rc.d" "$dir/etc/resolv.conf" "$dir/etc/hosts"`
	return buildSteps(ctx, log, [][]string{
		append([]string{"sh", "-ec", install, "install", base, dir, mirror(), string(r.suite)}, r.packages...),
		{"chroot", dir, "/bin/sh", "-ec", r.script},
	})
}

func buildSteps(ctx context.Context, log *os.File, steps [][]string) error {
	for _, argv := range steps {
		// Namespaces of its own, so that nothing it mounts or leaves running stays.
		argv = append([]string{"--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"}, argv...)
		cmd := exec.CommandContext(ctx, "unshare", argv...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s (log: %s): %w", argv[6], log.Name(), err)
		}
	}
	return nil
}

// prune removes trees of other recipes of the same kind that nobody has used for long.
func prune(dir string, r recipe) {
	old, _ := filepath.Glob(filepath.Join(dir, r.kind+"-"+string(r.suite)+"-*"))
	for _, o := range old {
		if info, err := os.Stat(o); err == nil && info.IsDir() && time.Since(info.ModTime()) > staleAfter {
			os.RemoveAll(o)
		}
	}
}

// Prepare makes the trees of the given suites, all at once; Boot would make
// them one after another.
func Prepare(ctx context.Context, suites ...Suite) error {
	errs := make(chan error)
	for _, s := range suites {
		go func() {
			_, err := ensure(ctx, osRecipe(s))
			if err == nil {
				_, err = ensure(ctx, hostRecipe(s))
			}
			errs <- err
		}()
	}
	var all error
	for range suites {
		all = errors.Join(all, <-errs)
	}
	return all
}
