/* machine-wait stands by a machine while nothing happens. The spawner executes it in its own place, as the same process:
 * it is the parent of the machine's first process, it holds every open file, and signals are blocked since before.
 * It waits until something happens (a signal, the end of the machine, a descriptor that wants something), and has a
 * helper do what is to be done then: the spawner again, as a child, which ends when nothing has happened for a while, or
 * with the machine (spawn/rest.go, spawn/wake.go).
 *
 * It is in C since each running machine costs one of it, and since a Go program can't keep signals blocked while it
 * starts: one that comes in that moment would kill the machine.
 *
 * $MACHINED_WAIT has numbers: descriptors of the spawner's program, its state, our and the helper's end of a socket,
 * the service manager's socket (-1: none), milliseconds between two signs of life, a signalfd, the pidfd and PID of the
 * machine's first process, and then what else to wait for, as DESCRIPTOR:EVENTS (poll(2)).
 *
 * Messages to the helper: "S<number>", a signal; "E<status>", the machine has ended (wait(2)). From it: "R", it rests;
 * "Q<status>", all is over, and that is the exit status; "A", all is over, and the machine is to be started again, with
 * the descriptors whose numbers follow, each after a blank. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

enum { PROGRAM, STATE, OURS, THEIRS, WATCHDOG, EVERY, SIGNALS, LEADER_FD, LEADER, COUNT };
enum { MAX_EVENTS = 64, MAX_FAILURES = 10, BASE = 3 };

static long known[COUNT];
/* What is always looked at, then what the helper looks at while it is there. */
static struct pollfd fds[BASE + MAX_EVENTS];
static nfds_t events;
static char **arguments;

static int parse(const char *text) {
        for (int i = 0; i < COUNT; i++) {
                char *end;
                known[i] = strtol(text, &end, 10);
                if (end == text)
                        return -1;
                text = end;
        }
        for (events = 0; events < MAX_EVENTS; events++) {
                char *end;
                long fd = strtol(text, &end, 10);
                if (end == text || *end != ':')
                        return 0;
                text = end + 1;
                fds[BASE + events].fd = (int)fd;
                fds[BASE + events].events = (short)strtol(text, &end, 10);
                text = end;
        }
        return -1; /* more than a machine can have */
}

static void pause_briefly(void) {
        nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
}

/* become executes the spawner, with a variable that tells it where its state is. */
static void become(const char *variable) {
        char path[64], value[96];
        char *environment[] = { value, NULL };
        sigset_t none;
        sigemptyset(&none);
        snprintf(path, sizeof path, "/proc/self/fd/%ld", known[PROGRAM]);
        snprintf(value, sizeof value, "%s=%ld %ld", variable, known[STATE], known[THEIRS]);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execve(path, arguments, environment);
}

/* start_helper returns the PID of a helper, or -1. */
static pid_t start_helper(void) {
        pid_t self = getpid(), pid = fork();
        if (pid != 0)
                return pid;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == self)
                become("MACHINED_WAKE");
        _exit(127);
}

static void tell(char what, int number) {
        char text[32];
        int len = snprintf(text, sizeof text, "%c%d", what, number);
        while (send((int)known[OURS], text, (size_t)len, MSG_NOSIGNAL) < 0 && (errno == EINTR || errno == ENOBUFS))
                pause_briefly();
}

/* again lets the spawner start the machine from the beginning, with nothing of this run left open but what is listed. */
static void again(const char *list) {
        if (syscall(SYS_close_range, 3U, ~0U, 1U << 2 /* CLOSE_RANGE_CLOEXEC */) == 0) {
                fcntl((int)known[PROGRAM], F_SETFD, 0);
                fcntl((int)known[STATE], F_SETFD, 0);
                for (char *end; *list; list = end) {
                        long fd = strtol(list, &end, 10);
                        if (end == list)
                                break;
                        fcntl((int)fd, F_SETFD, 0);
                }
        }
        become("MACHINED_AGAIN");
        exit(1);
}

/* heard takes what a helper that has ended has said. It returns whether that was well. */
static int heard(void) {
        char text[1024];
        int well = 0;
        for (;;) {
                ssize_t n = recv((int)known[OURS], text, sizeof text - 1, MSG_DONTWAIT);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return well;
                text[n] = 0;
                if (text[0] == 'Q')
                        exit(atoi(text + 1));
                if (text[0] == 'A')
                        again(text + 1);
                well = 1;
        }
}

/* unread tells whether there is a message that no helper has read. */
static int unread(void) {
        struct pollfd theirs = { (int)known[THEIRS], POLLIN, 0 };
        return poll(&theirs, 1, 0) > 0;
}

static long long milliseconds(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* sign_of_life tells the service manager that we live, when it is time. It returns how long there is until the next
 * one, in milliseconds: what else happens must not put it off. */
static int sign_of_life(void) {
        static long long next;
        if (known[WATCHDOG] < 0 || known[EVERY] <= 0)
                return -1;
        long long now = milliseconds();
        if (now >= next) {
                (void)!write((int)known[WATCHDOG], "WATCHDOG=1", 10);
                next = now + known[EVERY];
        }
        return (int)(next - now);
}

static void stand_by(void) {
        pid_t helper = -1;
        int wanted = 1, failures = 0; /* the first helper sees whether a signal was missed */
        fds[0] = (struct pollfd){ (int)known[SIGNALS], POLLIN, 0 };
        fds[1] = (struct pollfd){ (int)known[LEADER_FD], POLLIN, 0 };
        for (;;) {
                if (wanted && helper < 0 && (helper = start_helper()) > 0) {
                        int fd = (int)syscall(SYS_pidfd_open, helper, 0);
                        fds[2] = (struct pollfd){ fd, POLLIN, 0 };
                        wanted = 0;
                } else if (wanted && helper < 0)
                        pause_briefly(); /* no memory for one now */
                int left = sign_of_life();
                if (wanted && (left < 0 || left > 100))
                        left = 100;
                if (poll(fds, helper > 0 ? BASE : BASE + events, left) < 0)
                        continue;
                if (fds[0].revents) {
                        struct signalfd_siginfo info;
                        if (read(fds[0].fd, &info, sizeof info) == sizeof info) {
                                if (info.ssi_signo != SIGWINCH)
                                        tell('S', (int)info.ssi_signo);
                                wanted = helper < 0;
                        }
                }
                if (fds[1].revents) {
                        int status;
                        if (waitpid((pid_t)known[LEADER], &status, WNOHANG) == known[LEADER]) {
                                fds[1].fd = -1;
                                tell('E', status);
                                wanted = helper < 0;
                        }
                }
                if (helper < 0) {
                        for (nfds_t i = BASE; i < BASE + events; i++)
                                wanted |= fds[i].revents != 0;
                } else if (fds[2].fd < 0 || fds[2].revents) {
                        if (waitpid(helper, NULL, fds[2].fd < 0 ? WNOHANG : 0) == 0) {
                                pause_briefly(); /* without a pidfd */
                                continue;
                        }
                        if (fds[2].fd >= 0)
                                close(fds[2].fd);
                        fds[2] = (struct pollfd){ -1, 0, 0 };
                        helper = -1;
                        if (heard()) {
                                failures = 0;
                                wanted = unread();
                                continue;
                        }
                        /* It was killed. A machine without anybody who could end it must not go on. */
                        if (++failures > MAX_FAILURES) {
                                kill((pid_t)known[LEADER], SIGKILL);
                                exit(1);
                        }
                        pause_briefly();
                        wanted = 1;
                }
        }
}

int main(int argc, char **argv) {
        const char *text = getenv("MACHINED_WAIT");
        (void)argc;
        arguments = argv;
        fds[2].fd = -1;
        if (!text || parse(text) < 0) {
                fputs("machine-wait is for systemd-nspawn to use.\n", stderr);
                return 1;
        }
        /* What ps(1) calls the process, which the execution has changed. */
        const char *name = getenv("MACHINED_NAME");
        if (name)
                prctl(PR_SET_NAME, name);
        stand_by();
}
