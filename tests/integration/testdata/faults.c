/* Runs a command and has one of its system calls fail, or somebody killed in the midst of it.
 *
 * faults REPORT CALL WHAT COMMAND...: CALL is NAME/NUMBER, say mount/3 for the third mount(2) of those that change
 * something, or none. It gets the errno WHAT (a number); with WHAT kill the command dies there, with kill:CGROUP all
 * processes of that cgroup. File REPORT says what happened: how many such calls there were, and what CALL was; with none
 * then a line for each call, NAME/NUMBER and its arguments. The command's processes are watched by a seccomp filter that
 * asks (seccomp_unotify(2)), so that they need not be traced. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How a call counts: always, or if it writes to what is not a regular file, opens a file to change it, executes another
 * program than the command itself, sets a limit, or makes a process (Go can't do without another thread). */
enum { ALWAYS, WRITES, CHANGES_FILE, EXECUTES, LIMITS, FORKS };

/* What is told of its arguments: s a string, d a directory that a path is relative to, f a file, n a number, b bytes
 * whose number is the next argument, m a message (sendmsg(2)), - nothing. */
static const struct { const char *name; int nr, when; const char *arguments; } calls[] = {
#define CALL(n, arguments) { #n, SYS_##n, ALWAYS, arguments }
        CALL(mount, "sssn"), CALL(umount2, "sn"), CALL(move_mount, "dsdsn"), CALL(open_tree, "dsn"), CALL(fsopen, "sn"),
        CALL(fsconfig, "-ns"), CALL(fsmount, "-nn"), CALL(mount_setattr, "dsn"), CALL(pivot_root, "ss"), CALL(unshare, "n"),
        CALL(setns, "fn"), CALL(socket, "nnn"), CALL(socketpair, "nnn"), CALL(bind, "f"), CALL(connect, "f"), CALL(listen, "f"),
        CALL(sendto, "fbn"), CALL(sendmsg, "fm"), CALL(mkdirat, "dsn"), CALL(mknodat, "dsnn"), CALL(symlinkat, "sds"),
        CALL(linkat, "dsds"), CALL(unlinkat, "dsn"), CALL(renameat2, "dsds"), CALL(fchownat, "dsnn"), CALL(fchmodat, "dsn"),
        CALL(memfd_create, "s"), CALL(pipe2, "-n"), CALL(openat2, "ds"), CALL(pidfd_open, ""), CALL(flock, "fn"), CALL(ioctl, "fn"),
        CALL(setresuid, "nnn"), CALL(setresgid, "nnn"), CALL(setgroups, "n"), CALL(capset, ""), CALL(seccomp, "nn"),
        CALL(sethostname, ""), CALL(setsid, ""), CALL(chdir, "s"), CALL(fchdir, "f"), CALL(execveat, "ds"), CALL(copy_file_range, "f-f"),
        CALL(sendfile, "ff"), CALL(close_range, ""), CALL(dup3, ""), CALL(clone3, ""),
        CALL(fchown, "fnn"), CALL(fchmod, "fn"), CALL(ftruncate, "fn"), CALL(pwrite64, "f-n"), CALL(fsetxattr, "fs"),
        CALL(utimensat, "ds"), CALL(setsockopt, "fnn"), CALL(pidfd_send_signal, "-n"), CALL(sched_setaffinity, ""), CALL(personality, "n"),
        CALL(keyctl, "n"), { "execve", SYS_execve, EXECUTES, "s" }, { "clone", SYS_clone, FORKS, "" }, { "prlimit64", SYS_prlimit64, LIMITS, "-n" },
        { "write", SYS_write, WRITES, "fbn" }, { "openat", SYS_openat, CHANGES_FILE, "dsn" },
#ifdef SYS_mkdir
        CALL(mkdir, "sn"), CALL(rmdir, "s"), CALL(unlink, "s"), CALL(rename, "ss"), CALL(chown, "snn"), CALL(chmod, "sn"),
#endif
};
enum { COUNT = sizeof calls / sizeof *calls };

static int install(void) {
        /* Openings that change nothing are most of all calls: the kernel lets them pass by itself. */
        const uint32_t changes = O_WRONLY | O_RDWR | O_CREAT, ask = SECCOMP_RET_USER_NOTIF, flags = offsetof(struct seccomp_data, args[2]);
        struct sock_filter code[COUNT + 7], *c = code;
        *c++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        for (int i = 0; i < COUNT; i++)
                *c++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].nr, COUNT - i + (calls[i].when == CHANGES_FILE), 0);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, ask);
        *c++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, flags + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0));
        *c++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, changes, 0, 1);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, ask);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog prog = { c - code, code };
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &prog);
}

/* file is what a descriptor of a process is. */
static const char *file(const struct seccomp_notif *n, int fd) {
        static char path[64], target[512];
        if (fd == AT_FDCWD)
                return ".";
        snprintf(path, sizeof path, "/proc/%d/fd/%d", n->pid, fd);
        ssize_t len = readlink(path, target, sizeof target - 1);
        target[len < 0 ? 0 : len] = 0;
        return target;
}

/* counts tells whether a call changes something outside of its process. */
static int counts(int i, const struct seccomp_notif *n, pid_t command) {
        switch (calls[i].when) {
        case EXECUTES:
                return (pid_t)n->pid != command;
        case FORKS:
                return !(n->data.args[0] & CLONE_THREAD);
        case LIMITS:
                return n->data.args[2] != 0;
        case ALWAYS:
        case CHANGES_FILE:
                return 1;
        }
        const char *target = file(n, (int)n->data.args[0]);
        return !strncmp(target, "socket:", 7) || !strncmp(target, "/sys/", 5) || !strncmp(target, "/proc/", 6);
}

/* words writes what can be read of the bytes of a process, as strings(1) does. */
static void words(FILE *f, pid_t pid, uint64_t at, uint64_t len) {
        char bytes[512];
        struct iovec to = { bytes, len < sizeof bytes ? len : sizeof bytes }, from = { (void *)(uintptr_t)at, to.iov_len };
        ssize_t got = process_vm_readv(pid, &to, 1, &from, 1, 0);
        for (ssize_t i = 0, n = 0; i < got; i += n + 1) {
                for (n = 0; i + n < got && bytes[i + n] > ' ' && bytes[i + n] <= '~'; n++)
                        ;
                if (n >= 4)
                        fprintf(f, " %.*s", (int)n, bytes + i);
        }
}

/* describe writes a line on a call. */
static void describe(FILE *f, int i, int number, const struct seccomp_notif *n) {
        fprintf(f, "%s/%d", calls[i].name, number);
        for (int k = 0; calls[i].arguments[k]; k++) {
                char text[256] = "";
                struct iovec to = { text, sizeof text - 1 }, from = { (void *)(uintptr_t)n->data.args[k], sizeof text - 1 };
                switch (calls[i].arguments[k]) {
                case 's':
                        /* Up to the end of the page, if there is nothing behind it. */
                        if (process_vm_readv(n->pid, &to, 1, &from, 1, 0) < 0) {
                                from.iov_len = 4096 - n->data.args[k] % 4096;
                                if (from.iov_len < sizeof text)
                                        process_vm_readv(n->pid, &to, 1, &from, 1, 0);
                        }
                        text[strcspn(text, "\n")] = 0;
                        fprintf(f, " %s", text);
                        break;
                case 'd':
                case 'f':
                        fprintf(f, " %s", file(n, (int)n->data.args[k]));
                        break;
                case 'b':
                        words(f, n->pid, n->data.args[k], n->data.args[k + 1]);
                        break;
                case 'm': {
                        struct msghdr m = {};
                        struct iovec v = {}, here = { &m, sizeof m }, there = { (void *)(uintptr_t)n->data.args[k], sizeof m };
                        process_vm_readv(n->pid, &here, 1, &there, 1, 0);
                        here = (struct iovec){ &v, sizeof v }, there = (struct iovec){ m.msg_iov, sizeof v };
                        if (m.msg_iov && process_vm_readv(n->pid, &here, 1, &there, 1, 0) == sizeof v)
                                words(f, n->pid, (uintptr_t)v.iov_base, v.iov_len);
                        break;
                }
                case 'n':
                        fprintf(f, " %lld", (long long)n->data.args[k]);
                }
        }
        fputc('\n', f);
}

static void kill_group(const char *group) {
        char path[512];
        int pid;
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/cgroup.procs", group);
        FILE *f = fopen(path, "re");
        while (f && fscanf(f, "%d", &pid) == 1)
                kill(pid, SIGKILL);
        if (f)
                fclose(f);
}

int main(int argc, char **argv) {
        int gate[2], listener = -1, seen = 0, status = 0, running = 1;
        char *list = NULL;
        size_t size = 0;
        FILE *lines = open_memstream(&list, &size);
        if (argc < 5 || !lines || pipe2(gate, O_CLOEXEC) < 0)
                return 125;
        const char *what = argv[3], *at = "nothing", *slash = strchr(argv[2], '/');
        size_t length = slash ? (size_t)(slash - argv[2]) : 0;
        int number = slash ? atoi(slash + 1) : 0, numbers[COUNT] = {};
        pid_t child = fork();
        if (child == 0) {
                char go;
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                int fd = install();
                if (fd < 0 || dup2(fd, 100) < 0 || read(gate[0], &go, 1) != 1)
                        _exit(126);
                close(fd);
                close(100);
                execvp(argv[4], argv + 4);
                _exit(127);
        }
        int pidfd = syscall(SYS_pidfd_open, child, 0);
        while ((listener = syscall(SYS_pidfd_getfd, pidfd, 100, 0)) < 0)
                if (waitpid(child, &status, WNOHANG) != 0)
                        return 126;
        /* Each waits for the other: they had better share a processor (since Linux 6.6). */
        ioctl(listener, _IOW('!', 4, uint64_t), 1UL);
        if (write(gate[1], "x", 1) != 1)
                return 125;
        time_t end = 0;
        while (!end || time(NULL) < end) {
                struct pollfd fds[] = { { listener, POLLIN, 0 }, { running ? pidfd : -1, POLLIN, 0 } };
                struct seccomp_notif n = {};
                struct seccomp_notif_resp r = {};
                poll(fds, 2, 1000);
                if (running && waitpid(child, &status, WNOHANG) == child) {
                        running = 0;
                        end = time(NULL) + 10;
                }
                if (!(fds[0].revents & POLLIN)) {
                        if (fds[0].revents & POLLHUP)
                                break;
                        continue;
                }
                if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
                        continue;
                r.id = n.id;
                r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
                for (int i = 0; i < COUNT; i++) {
                        if (calls[i].nr != n.data.nr || !counts(i, &n, child))
                                continue;
                        seen++;
                        numbers[i]++;
                        if (!slash)
                                describe(lines, i, numbers[i], &n);
                        else if (numbers[i] == number && strlen(calls[i].name) == length && !strncmp(calls[i].name, argv[2], length)) {
                                at = calls[i].name;
                                if (!strcmp(what, "kill"))
                                        kill(child, SIGKILL);
                                else if (!strncmp(what, "kill:", 5))
                                        kill_group(what + 5);
                                else {
                                        r.flags = 0;
                                        r.error = -atoi(what);
                                }
                        }
                }
                ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r);
        }
        if (running && waitpid(child, &status, 0) != child)
                return 125;
        FILE *f = fopen(argv[1], "we");
        if (!f)
                return 125;
        fclose(lines);
        fprintf(f, "%d %s\n%s", seen, at, list);
        fclose(f);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
