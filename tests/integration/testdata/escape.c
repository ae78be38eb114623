/* Tries the known ways out of a machine, as its root. Each way runs in a process and a mount namespace of its own and
 * says "NAME refused: WHY" or "NAME through: WHAT". Nothing of the host is changed: files are only opened.
 *
 * escape DISK SUPERVISOR OUTSIDE: DISK is the host's device as MAJOR:MINOR, SUPERVISOR a process ID of the host,
 * OUTSIDE a path that only the host has. A fourth argument is the only way to try. With one or two arguments it does one
 * thing of those at the end. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned disk_major, disk_minor;
static long supervisor;
static const char *outside;
static char detail[512];

/* through notes what worked and is the result of a way that got out. */
static int through(const char *format, ...) {
        va_list list;
        va_start(list, format);
        vsnprintf(detail, sizeof detail, format, list);
        va_end(list);
        return 1;
}

/* refused notes the error of the last attempt. */
static int refused(void) {
        if (!detail[0])
                snprintf(detail, sizeof detail, "%s", strerrorname_np(errno) ?: "nothing found");
        return 0;
}

static int call(const char *what, long result) { return result >= 0 ? through("%s", what) : refused(); }

static int can_open(const char *path, int flags) {
        int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return 0;
        close(fd);
        return 1;
}

static int writable(const char *path) {
        return can_open(path, O_WRONLY) ? through("%s can be written to", path) : refused();
}

static int any_writable(const char *const *paths) {
        for (; *paths; paths++)
                if (writable(*paths))
                        return 1;
        return 0;
}

static const char *const settings[] = {
        "kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "kernel/randomize_va_space", "kernel/sysrq", "kernel/panic",
        "vm/drop_caches", "vm/overcommit_memory", "fs/file-max", "fs/suid_dumpable",
        "fs/binfmt_misc/register", "kernel/yama/ptrace_scope", NULL };

/* setting writes to a setting what it is already, or what it can't be where it can't be read: a guard may let the
   file be opened, and refuse the write. */
static int setting(const char *path) {
        char value[512] = "?";
        int in = open(path, O_RDONLY | O_CLOEXEC), out = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
        ssize_t n = in < 0 ? -1 : read(in, value, sizeof value);
        if (out < 0)
                return refused();
        if (n <= 0)
                n = 1;
        errno = 0;
        if (write(out, value, n) == n || (errno != EPERM && errno != EACCES && errno != EROFS))
                return through("%s can be written to", path);
        return refused();
}

static int any_setting(const char *proc) {
        char path[PATH_MAX];
        for (const char *const *s = settings; *s; s++) {
                snprintf(path, sizeof path, "%s/sys/%s", proc, *s);
                if (setting(path))
                        return 1;
        }
        return 0;
}

static int proc_sys(void) { return any_setting("/proc"); }
static int core_pattern(void) { return setting("/proc/sys/kernel/core_pattern"); }

static int proc_files(void) {
        static const char *const paths[] = { "/proc/sysrq-trigger", "/proc/kcore", "/proc/acpi/wakeup", "/proc/irq/default_smp_affinity",
                "/proc/scsi/scsi", "/proc/mtrr", "/proc/latency_stats", "/proc/timer_list", "/proc/fs/xfs/stat", NULL };
        char buf[64] = "";
        int fd;
        if (any_writable(paths))
                return 1;
        fd = open("/proc/kcore", O_RDONLY);
        if (fd >= 0 && read(fd, buf, 4) == 4)
                return through("/proc/kcore can be read");
        fd = open("/proc/kallsyms", O_RDONLY);
        if (fd >= 0 && read(fd, buf, 16) == 16 && strncmp(buf, "0000000000000000", 16))
                return through("/proc/kallsyms can be read");
        return refused();
}

/* A namespace of the machine's own may have its files in these. */
static const char *const own[] = { "/sys/fs/cgroup", "/sys/class/net", "/sys/devices/virtual/net", NULL };
static char found[PATH_MAX];

static int try_file(const char *path, const struct stat *st, int type, struct FTW *at) {
        (void)at;
        for (const char *const *o = own; *o; o++)
                if (!strncmp(path, *o, strlen(*o)))
                        return 0;
        if (type == FTW_F && S_ISREG(st->st_mode) && st->st_mode & 0222 && can_open(path, O_WRONLY)) {
                snprintf(found, sizeof found, "%s", path);
                return 1;
        }
        return 0;
}

static int walk(const char *top) {
        errno = EROFS;
        return nftw(top, try_file, 64, FTW_PHYS | FTW_MOUNT) == 1 ? through("%s can be written to", found) : refused();
}

static int sys_files(void) {
        static const char *const tops[] = { "/sys", "/sys/kernel", "/sys/class", "/sys/block", "/sys/bus", "/sys/devices", "/sys/module",
                "/sys/firmware", "/sys/power", "/sys/fs", NULL };
        for (const char *const *t = tops; *t; t++)
                if (walk(*t))
                        return 1;
        return 0;
}

static int uevent_helper(void) {
        static const char *const paths[] = { "/sys/kernel/uevent_helper", "/sys/kernel/uevent_seqnum", "/sys/power/state",
                "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling", "/sys/devices/system/cpu/cpu1/online", NULL };
        return any_writable(paths);
}

static int remount_proc(void) {
        if (mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL) < 0 && mount(NULL, "/proc/sys", NULL, MS_REMOUNT, NULL) < 0)
                return refused();
        return any_setting("/proc");
}

static int remount_sys(void) {
        if (mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL) < 0 && mount(NULL, "/sys/kernel", NULL, MS_REMOUNT | MS_BIND, NULL) < 0)
                return refused();
        return sys_files();
}

static int uncover_proc(void) {
        if (umount2("/proc/sys", MNT_DETACH) < 0)
                return refused();
        return any_setting("/proc");
}

static int fresh(const char *type, const char *data) {
        mkdir("/run/fresh", 0755);
        return mount(type, "/run/fresh", type, 0, data);
}

static int fresh_proc(void) { return fresh("proc", NULL) < 0 ? refused() : any_setting("/run/fresh"); }

static int uncover_files(void) {
        if (umount2("/proc/sysrq-trigger", MNT_DETACH) == 0 && writable("/proc/sysrq-trigger"))
                return 1;
        return fresh("proc", NULL) < 0 ? refused() : writable("/run/fresh/sysrq-trigger") || writable("/run/fresh/irq/default_smp_affinity");
}

static int fresh_sysfs(void) { return fresh("sysfs", NULL) < 0 ? refused() : walk("/run/fresh/kernel"); }

static int debugfs(void) {
        static const char *const types[] = { "debugfs", "tracefs", "securityfs", "pstore", "bpf", "configfs", "efivarfs", "binfmt_misc", NULL };
        for (const char *const *t = types; *t; t++)
                if (fresh(*t, NULL) == 0 && strcmp(*t, "binfmt_misc") && strcmp(*t, "bpf"))
                        return through("%s can be mounted", *t);
        return refused();
}

static int release_agent(void) {
        static const char *const controllers[] = { "rdma", "memory", "cpu", "pids", "devices", "freezer", "net_cls", "perf_event", "hugetlb",
                "misc", "cpuset", "none,name=systemd", "none,name=escape", NULL };
        for (const char *const *c = controllers; *c; c++)
                if (fresh("cgroup", *c) == 0 && writable("/run/fresh/release_agent"))
                        return 1;
        return refused();
}

static int host_cgroups(void) {
        if (fresh("cgroup2", NULL) == 0) {
                if (!access("/run/fresh/system.slice", F_OK) || !access("/run/fresh/machine.slice", F_OK))
                        return through("the host's cgroups can be mounted");
                errno = EXDEV;
        }
        if (can_open("/sys/fs/cgroup/../../../sys/fs/cgroup/system.slice/cgroup.procs", O_WRONLY))
                return through("the host's cgroups are in sight");
        if (!access("/sys/fs/cgroup/memory.max", F_OK) && !access("/sys/fs/cgroup/cgroup.procs", W_OK) && unshare(CLONE_NEWCGROUP) == 0) {
                detail[0] = 0;
                if (fresh("cgroup2", NULL) == 0 && !access("/run/fresh/system.slice", F_OK))
                        return through("a new cgroup namespace shows the host's");
        }
        return refused();
}

static int open_node(mode_t type, unsigned major, unsigned minor, const char *what) {
        unlink("/run/node");
        if (mknod("/run/node", type | 0600, makedev(major, minor)) < 0)
                return refused();
        if (can_open("/run/node", O_RDONLY))
                return through("%s can be opened", what);
        /* The file system may forbid devices, another may not. */
        if (fresh("tmpfs", NULL) == 0 && mknod("/run/fresh/node", type | 0600, makedev(major, minor)) == 0 &&
            can_open("/run/fresh/node", O_RDONLY))
                return through("%s can be opened", what);
        return refused();
}

static int disk_node(void) { return open_node(S_IFBLK, disk_major, disk_minor, "the host's disk"); }

static int memory_nodes(void) {
        return open_node(S_IFCHR, 1, 1, "/dev/mem") || open_node(S_IFCHR, 1, 4, "/dev/port") || open_node(S_IFCHR, 1, 11, "/dev/kmsg") ||
                open_node(S_IFCHR, 10, 144, "/dev/nvram") || open_node(S_IFCHR, 10, 237, "/dev/loop-control") ||
                open_node(S_IFCHR, 10, 236, "/dev/mapper/control") || open_node(S_IFCHR, 10, 232, "/dev/kvm") ||
                open_node(S_IFCHR, 4, 1, "/dev/tty1") || open_node(S_IFCHR, 13, 64, "/dev/input/event0");
}

static int mount_disk(void) {
        static const char *const types[] = { "ext4", "xfs", "btrfs", "squashfs", "erofs", "vfat", NULL };
        if (mknod("/run/node", S_IFBLK | 0600, makedev(disk_major, disk_minor)) < 0)
                return refused();
        mkdir("/run/fresh", 0755);
        for (const char *const *t = types; *t; t++)
                if (mount("/run/node", "/run/fresh", *t, MS_RDONLY, NULL) == 0 || errno == EBUSY)
                        return through("the host's disk can be mounted");
        return refused();
}

static int has_outside(const char *root) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s%s", root, outside);
        return !access(path, F_OK) ? through("%s is in sight", path) : 0;
}

static int proc_roots(void) {
        static const char *const links[] = { "root", "cwd", "root/..", NULL };
        char path[64];
        struct dirent *e;
        DIR *proc = opendir("/proc");
        while (proc && (e = readdir(proc))) {
                long pid = atol(e->d_name);
                if (!pid)
                        continue;
                for (const char *const *l = links; *l; l++) {
                        snprintf(path, sizeof path, "/proc/%ld/%s", pid, *l);
                        if (has_outside(path))
                                return 1;
                }
                for (int fd = 0; fd < 64; fd++) {
                        snprintf(path, sizeof path, "/proc/%ld/fd/%d/..", pid, fd);
                        if (has_outside(path))
                                return 1;
                }
        }
        errno = ENOENT;
        return refused();
}

static int chroot_out(void) {
        int top = open("/", O_RDONLY | O_DIRECTORY);
        mkdir("/run/jail", 0755);
        if (top < 0 || chroot("/run/jail") < 0 || fchdir(top) < 0)
                return refused();
        for (int i = 0; i < 64; i++)
                if (chdir("..") < 0)
                        return refused();
        if (chroot(".") < 0)
                return refused();
        errno = ENOENT;
        return has_outside("") || refused();
}

static int pivot_out(void) {
        if (syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 && has_outside(""))
                return 1;
        umount2("/", MNT_DETACH);
        return has_outside("/..") || has_outside("") || refused();
}

static int keys(void) {
        char buf[256];
        long id = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, "user", "machined-test", 0);
        if (id >= 0 && syscall(SYS_keyctl, KEYCTL_READ, id, buf, sizeof buf) >= 0)
                return through("a key of the host's root can be read");
        if (syscall(SYS_add_key, "user", "escape", "x", 1L, KEY_SPEC_USER_KEYRING) >= 0)
                return through("a key can be put into the host's keyring");
        id = syscall(SYS_request_key, "user", "machined-test", NULL, 0L);
        if (id >= 0)
                return through("a key of the host can be requested");
        for (id = 1; id < 4096; id++)
                if (syscall(SYS_keyctl, KEYCTL_DESCRIBE, id, buf, sizeof buf) >= 0)
                        return through("key %ld can be described", id);
        return refused();
}

/* The program that runs as process 1 of a machine with a stub init, and what else there is. */
static int programs(void) {
        char path[64];
        errno = ENOENT;
        for (long pid = 1; pid < 1024; pid++) {
                char target[PATH_MAX] = "", self[PATH_MAX] = "";
                snprintf(path, sizeof path, "/proc/%ld/exe", pid);
                if (readlink(path, target, sizeof target - 1) < 0 || readlink("/proc/self/exe", self, sizeof self - 1) < 0 ||
                    !strcmp(target, self))
                        continue;
                int fd = open(path, O_RDWR);
                if (fd >= 0 && pwrite(fd, "\x7f", 1, 0) == 1)
                        return through("%s of process %ld can be written to", target, pid);
                fd = open(path, O_RDONLY);
                if (fd >= 0) {
                        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
                        fd = open(path, O_WRONLY);
                        if (fd >= 0 && pwrite(fd, "\x7f", 1, 0) == 1)
                                return through("%s of process %ld can be written to", target, pid);
                }
        }
        return refused();
}

static int leaked(void) {
        char path[64], target[PATH_MAX];
        errno = ENOENT;
        for (long pid = 1; pid <= getpid(); pid++)
                for (int fd = 3; fd < 128; fd++) {
                        snprintf(path, sizeof path, "/proc/%ld/fd/%d", pid, fd);
                        ssize_t n = readlink(path, target, sizeof target - 1);
                        if (n < 0)
                                continue;
                        target[n] = 0;
                        /* What a program of ours has for itself: a pipe or event file that nobody else is at. */
                        if (!strncmp(target, "anon_inode:", 11) || !strncmp(target, "pipe:", 5))
                                continue;
                        return through("descriptor %d of process %ld is %s", fd, pid, target);
                }
        return refused();
}

static int supervisor_touch(void) {
        char byte;
        struct iovec local = { &byte, 1 }, remote = { (void *)0x400000, 1 };
        if (getppid() == 0 && getpid() != 1)
                return through("the parent is outside");
        if (kill(supervisor, 0) == 0)
                return through("the supervisor can be signalled");
        if (ptrace(PTRACE_SEIZE, supervisor, 0, 0) == 0)
                return through("the supervisor can be traced");
        if (syscall(SYS_pidfd_open, supervisor, 0) >= 0)
                return through("the supervisor can be held");
        if (process_vm_readv(supervisor, &local, 1, &remote, 1, 0) >= 0)
                return through("the supervisor's memory can be read");
        return refused();
}

static int audit(void) {
        struct { struct nlmsghdr head; struct audit_status status; } m = {
                { sizeof m, AUDIT_SET, NLM_F_REQUEST | NLM_F_ACK, 1, 0 }, { .mask = AUDIT_STATUS_ENABLED, .enabled = 1 } };
        struct { struct nlmsghdr head; struct nlmsgerr error; char rest[256]; } answer;
        int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);
        if (fd < 0 || send(fd, &m, sizeof m, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < (ssize_t)sizeof answer.head)
                return refused();
        if (answer.head.nlmsg_type == NLMSG_ERROR && answer.error.error) {
                errno = -answer.error.error;
                return refused();
        }
        return through("the kernel's audit can be set");
}

static int userfault(void) { return call("userfaultfd works", syscall(SYS_userfaultfd, O_CLOEXEC)); }

static int bpf_load(void) {
        struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
        union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_KPROBE, .insns = (unsigned long)code, .insn_cnt = 2, .license = (unsigned long)"GPL" };
        return call("a BPF program can be loaded", syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr));
}

static int kexec(void) {
        return call("kexec_load works", syscall(SYS_kexec_load, 0L, 0L, NULL, 0L)) || call("kexec_file_load works", syscall(SYS_kexec_file_load, -1, -1, 0L, "", 0L));
}

/* Calls that would do harm are made with arguments that the kernel refuses later than the right to make them. */
static int later(const char *what, long result) { return result < 0 && (errno == EPERM || errno == ENOSYS) ? refused() : through("%s", what); }

static int modules(void) {
        return later("modules can be loaded", syscall(SYS_init_module, NULL, 0L, "")) || later("modules can be loaded", syscall(SYS_finit_module, -1, "", 0)) ||
                later("modules can be removed", syscall(SYS_delete_module, "none-such", O_NONBLOCK));
}

static int handles(void) {
        struct { struct file_handle head; unsigned char bytes[8]; } h = { { 8, 1, {} }, { 2, 0, 0, 0, 0, 0, 0, 0 } };
        int top = open("/", O_RDONLY | O_DIRECTORY);
        return later("files can be opened by handle", open_by_handle_at(top, &h.head, O_RDONLY));
}

static int perf(void) {
        struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK };
        return call("the host's CPUs can be watched", syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0));
}

static int quota(void) {
        return later("quotas can be set", syscall(SYS_quotactl, 0x800002 << 8, "/run/node", 0, NULL)) || later("quotas can be set", syscall(SYS_quotactl_fd, -1, 0x800002 << 8, 0, NULL));
}

static int clocks(void) {
        struct timespec ts = { -1, 0 };
        struct timex tx = { .modes = ADJ_OFFSET, .offset = 0 };
        return later("the clock can be set", clock_settime(CLOCK_REALTIME, &ts)) || later("the clock can be set", adjtimex(&tx));
}

static int ports(void) { return call("I/O ports can be used", ioperm(0x80, 1, 1)) || call("I/O ports can be used", iopl(3)); }

static int swap(void) {
        return later("swap can be turned on", swapon("/run/none-such", 0)) || later("swap can be turned off", swapoff("/run/none-such")) ||
                later("accounting can be set", syscall(SYS_acct, "/run/none-such"));
}

static int kernel_log(void) {
        char buf[256];
        return call("the kernel's log can be read", syscall(SYS_syslog, 3, buf, sizeof buf));
}

static int old_calls(void) {
        return later("lookup_dcookie works", syscall(SYS_lookup_dcookie, 0L, NULL, 0L)) || later("nfsservctl works", syscall(SYS_nfsservctl, 0, NULL, NULL)) ||
                later("uselib works", syscall(SYS_uselib, "/none-such")) || later("_sysctl works", syscall(SYS__sysctl, NULL));
}

static int inner_users(void) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
                return refused();
        int fd = open("/proc/self/setgroups", O_WRONLY);
        if (fd >= 0 && write(fd, "deny", 4) != 4)
                return refused();
        fd = open("/proc/self/uid_map", O_WRONLY);
        if (fd < 0 || write(fd, "0 0 1", 5) != 5)
                return refused();
        if (fresh("tmpfs", NULL) < 0)
                return -1; /* root of a user namespace may mount this */
        if (umount2("/proc/sys", MNT_DETACH) == 0 || umount2("/proc/kcore", MNT_DETACH) == 0)
                return through("covers can be taken off");
        if (mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL) == 0 && any_setting("/proc"))
                return 1;
        if (fresh("proc", NULL) == 0 && any_setting("/run/fresh"))
                return 1;
        if (fresh("sysfs", NULL) == 0 && walk("/run/fresh/kernel"))
                return 1;
        return refused();
}

static int inner_users_keys(void) {
        if (unshare(CLONE_NEWUSER) < 0)
                return refused();
        return keys();
}

static int abstract_socket(void) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        static const char name[] = "machined-test-outside";
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        memcpy(a.sun_path + 1, name, sizeof name - 1);
        return call("an abstract socket of the host can be reached", connect(fd, (struct sockaddr *)&a, offsetof(struct sockaddr_un, sun_path) + sizeof name));
}

static int host_sockets(void) {
        static const char *const paths[] = { "/run/host/notify/../../../systemd/private", "/run/systemd/notify", "/run/systemd/private",
                "/run/dbus/system_bus_socket", "/run/systemd/journal/socket", "/run/host/journal/socket", NULL };
        for (const char *const *p = paths; *p; p++) {
                struct sockaddr_un a = { .sun_family = AF_UNIX };
                strncpy(a.sun_path, *p, sizeof a.sun_path - 1);
                int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
                if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0 || errno == EPROTOTYPE)
                        return through("%s answers", *p);
        }
        return refused();
}

static int join(void) {
        static const char *const spaces[] = { "mnt", "pid", "net", "ipc", "uts", "user", "cgroup", NULL };
        struct stat a, b;
        char path[64];
        errno = ENOENT;
        /* Namespaces have parents: none of them is to be had. */
        int fd = open("/proc/self/ns/user", O_RDONLY), up = fd < 0 ? -1 : (int)syscall(SYS_ioctl, fd, 0xb701 /* NS_GET_USERNS */);
        if (up >= 0)
                return through("the user namespace outside can be held");
        fd = open("/proc/self/ns/pid", O_RDONLY);
        up = fd < 0 ? -1 : (int)syscall(SYS_ioctl, fd, 0xb702 /* NS_GET_PARENT */);
        if (up >= 0)
                return through("the PID namespace outside can be held");
        for (const char *const *s = spaces; *s; s++) {
                snprintf(path, sizeof path, "/proc/%ld/ns/%s", supervisor, *s);
                if (!stat(path, &a) && !stat("/proc/1/ns/mnt", &b))
                        return through("%s is in sight", path);
        }
        return refused();
}

static const struct { const char *name; int (*run)(void); } ways[] = {
        { "proc-sys", proc_sys }, { "core-pattern", core_pattern }, { "proc-files", proc_files }, { "sys-files", sys_files },
        { "uevent-helper", uevent_helper }, { "remount-proc", remount_proc }, { "remount-sys", remount_sys }, { "uncover-proc", uncover_proc },
        { "fresh-proc", fresh_proc }, { "fresh-proc-files", uncover_files }, { "fresh-sysfs", fresh_sysfs }, { "kernel-filesystems", debugfs }, { "release-agent", release_agent },
        { "host-cgroups", host_cgroups }, { "disk-node", disk_node }, { "device-nodes", memory_nodes }, { "mount-disk", mount_disk },
        { "proc-root", proc_roots }, { "chroot", chroot_out }, { "pivot-root", pivot_out }, { "keyring", keys }, { "programs", programs },
        { "descriptors", leaked }, { "supervisor", supervisor_touch }, { "namespaces", join }, { "audit", audit }, { "userfaultfd", userfault },
        { "bpf", bpf_load }, { "kexec", kexec }, { "modules", modules }, { "open-by-handle", handles }, { "perf", perf }, { "quota", quota },
        { "clock", clocks }, { "io-ports", ports }, { "swap", swap }, { "kernel-log", kernel_log }, { "old-calls", old_calls },
        { "inner-users", inner_users }, { "inner-users-keyring", inner_users_keys }, { "abstract-socket", abstract_socket },
        { "host-sockets", host_sockets },
};

/* overwrite writes to the program behind a descriptor, which loader.c has opened, as soon as nobody runs it. */
static int overwrite(const char *fd) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%s", fd);
        for (int i = 0; i < 50; i++) {
                int out = open(path, O_WRONLY | O_CLOEXEC);
                if (out >= 0)
                        return through("the program can be written to");
                usleep(10000);
        }
        return refused();
}

/* type puts a character into the input of the terminal that it is given. */
static int type(void) {
        int linux_paste = 3;
        return call("input can be put into the host's terminal", ioctl(0, TIOCSTI, "!")) || call("the same", ioctl(0, TIOCSTI | 1UL << 40, "!")) ||
                call("text can be pasted into the host's terminal", ioctl(0, TIOCLINUX, &linux_paste));
}

/* notify tells the spawner lies, from a process that is not the machine's first. */
static int notify(const char *text) {
        struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "/run/host/notify" };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        return sendto(fd, text, strlen(text), 0, (struct sockaddr *)&a, sizeof a) < 0;
}

/* lurk looks for processes that come from outside and tries to hold what they have, until there is a file. */
static int lurk(const char *end) {
        pid_t self = getpid();
        setbuf(stdout, NULL);
        puts("lurking");
        while (access(end, F_OK))
                for (pid_t pid = 1; pid < self + 400; pid++) {
                        char path[64], target[PATH_MAX];
                        if (pid == self)
                                continue;
                        snprintf(path, sizeof path, "/proc/%d", pid);
                        if (access(path, F_OK))
                                continue;
                        /* Whoever is not of this process's own children. */
                        snprintf(path, sizeof path, "/proc/%d/exe", pid);
                        ssize_t n = readlink(path, target, sizeof target - 1);
                        target[n < 0 ? 0 : n] = 0;
                        printf("seen %s\n", n > 0 ? target : "a process");
                        int fd = open(path, O_RDWR | O_CLOEXEC);
                        if (fd >= 0)
                                printf("through: %s can be written to\n", target);
                        for (int i = 0; i < 32; i++) {
                                snprintf(path, sizeof path, "/proc/%d/fd/%d/../../../../..", pid, i);
                                if (has_outside(path))
                                        printf("through: %s\n", detail);
                        }
                        snprintf(path, sizeof path, "/proc/%d/mem", pid);
                        if (can_open(path, O_RDWR)) /* takes the right to trace */
                                printf("through: process %d can be traced\n", pid);
                }
        puts("end");
        return 0;
}

/* all tries everything, or what has the given name. */
static int all(const char *only) {
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
                int status;
                if (only && strcmp(only, ways[i].name))
                        continue;
                fflush(NULL);
                pid_t pid = fork();
                if (pid == 0) {
                        alarm(20);
                        if (unshare(CLONE_NEWNS) == 0)
                                mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL);
                        errno = 0;
                        int out = ways[i].run();
                        printf("%s %s: %s\n", ways[i].name, out < 0 ? "broken" : out ? "through" : "refused", detail);
                        fflush(NULL);
                        _exit(0);
                }
                if (pid < 0 || waitpid(pid, &status, 0) != pid)
                        return 3;
                if (WIFSIGNALED(status)) /* by a filter, or it hung */
                        printf("%s %s: signal %s\n", ways[i].name, WTERMSIG(status) == SIGALRM ? "hung" : "refused", sigabbrev_np(WTERMSIG(status)));
        }
        return 0;
}

/* passwd answers as getent(1), having tried everything first. */
static int passwd(void) {
        int out = dup(1);
        disk_major = 8;
        supervisor = 1 << 22; /* none of the machine's */
        if (!freopen("/results/lookup", "w", stdout) || fcntl(out, F_SETFD, FD_CLOEXEC) < 0 || all(NULL))
                return 1;
        dprintf(out, "user:x:1000:1000::/home/user:/bin/sh\n");
        return 0;
}

static int one(const char *name, const char *arg) {
        outside = "/var/lib/only-on-host";
        if (!strcmp(name, "overwrite"))
                printf("%s: %s\n", overwrite(arg) ? "through" : "refused", detail);
        else if (!strcmp(name, "type"))
                printf("%s: %s\n", type() ? "through" : "refused", detail);
        else if (!strcmp(name, "notify"))
                return notify(arg);
        else if (!strcmp(name, "lurk"))
                return lurk(arg);
        else if (!strcmp(name, "passwd"))
                return passwd();
        else if (!strcmp(name, "root"))
                printf("%s: user %d\n", geteuid() == 0 ? "through" : "refused", geteuid());
        else
                return 2;
        return 0;
}

int main(int argc, char **argv) {
        if (argc == 2 || argc == 3)
                return one(argv[1], argc == 3 ? argv[2] : "");
        if (argc < 4 || sscanf(argv[1], "%u:%u", &disk_major, &disk_minor) != 2)
                return 2;
        supervisor = atol(argv[2]);
        outside = argv[3];
        return all(argv[4]);
}
