/* Runs a command and has one of its system calls fail, or somebody killed in the midst of it.
 *
 * faults REPORT NUMBER WHAT COMMAND...: the NUMBERth of the calls that change something (0: none) gets the errno WHAT
 * (a number); with WHAT kill the command dies there, with kill:CGROUP all processes of that cgroup. What happened goes into
 * file REPORT: how many such calls there were, and which one it was. The command's processes are watched by a
 * seccomp filter that asks (seccomp_unotify(2)), so that they need not be traced. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How a call counts. */
enum { ALWAYS, WRITES, CHANGES_FILE };

static const struct { const char *name; int nr, when; } calls[] = {
#define CALL(n, when) { #n, SYS_##n, when }
        CALL(mount, ALWAYS), CALL(umount2, ALWAYS), CALL(move_mount, ALWAYS), CALL(open_tree, ALWAYS), CALL(fsopen, ALWAYS),
        CALL(fsconfig, ALWAYS), CALL(fsmount, ALWAYS), CALL(mount_setattr, ALWAYS), CALL(pivot_root, ALWAYS), CALL(unshare, ALWAYS),
        CALL(setns, ALWAYS), CALL(socket, ALWAYS), CALL(socketpair, ALWAYS), CALL(bind, ALWAYS), CALL(connect, ALWAYS), CALL(listen, ALWAYS),
        CALL(sendto, ALWAYS), CALL(sendmsg, ALWAYS), CALL(mkdirat, ALWAYS), CALL(mknodat, ALWAYS), CALL(symlinkat, ALWAYS),
        CALL(linkat, ALWAYS), CALL(unlinkat, ALWAYS), CALL(renameat2, ALWAYS), CALL(fchownat, ALWAYS), CALL(fchmodat, ALWAYS),
        CALL(memfd_create, ALWAYS), CALL(pipe2, ALWAYS), CALL(openat2, ALWAYS), CALL(pidfd_open, ALWAYS), CALL(flock, ALWAYS), CALL(ioctl, ALWAYS),
        CALL(setresuid, ALWAYS), CALL(setresgid, ALWAYS), CALL(setgroups, ALWAYS), CALL(capset, ALWAYS), CALL(seccomp, ALWAYS),
        CALL(sethostname, ALWAYS), CALL(setsid, ALWAYS), CALL(chdir, ALWAYS), CALL(fchdir, ALWAYS), CALL(execveat, ALWAYS), CALL(copy_file_range, ALWAYS),
        CALL(sendfile, ALWAYS), CALL(close_range, ALWAYS), CALL(dup3, ALWAYS), CALL(write, WRITES), CALL(openat, CHANGES_FILE), CALL(clone3, ALWAYS),
#ifdef SYS_mkdir
        CALL(mkdir, ALWAYS), CALL(rmdir, ALWAYS), CALL(unlink, ALWAYS), CALL(rename, ALWAYS), CALL(chown, ALWAYS), CALL(chmod, ALWAYS),
#endif
};
enum { COUNT = sizeof calls / sizeof *calls };

static int install(void) {
        struct sock_filter code[COUNT + 4], *c = code;
        *c++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        for (int i = 0; i < COUNT; i++)
                *c++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].nr, COUNT - i, 0);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        *c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
        struct sock_fprog prog = { c - code, code };
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &prog);
}

/* counts tells whether a call changes something outside of its process. */
static int counts(int i, const struct seccomp_notif *n) {
        char path[64], target[256];
        switch (calls[i].when) {
        case CHANGES_FILE:
                return n->data.args[2] & (O_WRONLY | O_RDWR | O_CREAT);
        case WRITES:
                snprintf(path, sizeof path, "/proc/%d/fd/%d", n->pid, (int)n->data.args[0]);
                ssize_t len = readlink(path, target, sizeof target - 1);
                target[len < 0 ? 0 : len] = 0;
                return !strncmp(target, "socket:", 7) || !strncmp(target, "/sys/", 5) || !strncmp(target, "/proc/", 6);
        }
        return 1;
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
        if (argc < 5 || pipe2(gate, O_CLOEXEC) < 0)
                return 125;
        int number = atoi(argv[2]);
        const char *what = argv[3], *at = "nothing";
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
                for (int i = 0; i < COUNT; i++)
                        if (calls[i].nr == n.data.nr && counts(i, &n) && ++seen == number) {
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
                ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r);
        }
        if (running && waitpid(child, &status, 0) != child)
                return 125;
        FILE *f = fopen(argv[1], "we");
        if (!f)
                return 125;
        fprintf(f, "%d %s\n", seen, at);
        fclose(f);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
