/* Drives libnss_mymachines.so.2 as libc would, through dlopen, with a server of
 * its own at the other end: right answers, wrong ones, garbage, silence. Built
 * with another socket path (see check.sh); exits 1 at the first surprise. */
#define _GNU_SOURCE
#include "../ask.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <netdb.h>
#include <nss.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REQUIRE(x)                                                                  \
        do {                                                                        \
                if (!(x)) {                                                         \
                        fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #x); \
                        exit(1);                                                    \
                }                                                                   \
        } while (0)

typedef enum nss_status by_name4(const char *, struct gaih_addrtuple **, char *, size_t, int *, int *, int32_t *);
typedef enum nss_status by_name3(const char *, int, struct hostent *, char *, size_t, int *, int *, int32_t *, char **);
typedef enum nss_status by_name2(const char *, int, struct hostent *, char *, size_t, int *, int *);
typedef enum nss_status by_name1(const char *, struct hostent *, char *, size_t, int *, int *);
typedef enum nss_status by_addr(const void *, socklen_t, int, struct hostent *, char *, size_t, int *, int *);
typedef enum nss_status pw_name(const char *, struct passwd *, char *, size_t, int *);
typedef enum nss_status pw_uid(uid_t, struct passwd *, char *, size_t, int *);
typedef enum nss_status gr_name(const char *, struct group *, char *, size_t, int *);
typedef enum nss_status gr_gid(gid_t, struct group *, char *, size_t, int *);

static by_name4 *name4;
static by_name3 *name3;
static by_name2 *name2;
static by_name1 *name1;
static by_addr *addr1;
static pw_name *pwnam;
static pw_uid *pwuid;
static gr_name *grnam;
static gr_gid *grgid;

enum mode { GOOD, SILENT, CLOSING, FUZZ, HUGE_REPLY, HUGE_COUNT, DRIP, SLOW, NOT_FOUND, UNAVAILABLE, FDS };
static _Atomic enum mode mode = GOOD;
static int listener = -1;
static unsigned seed = 1;
static _Atomic unsigned char asked_family;

static void put(unsigned char **p, const void *data, size_t n) {
        memcpy(*p, data, n);
        *p += n;
}

static size_t good_reply(const unsigned char *q, size_t n, unsigned char *out) {
        unsigned char *p = out + 8;
        const unsigned char record4[24] = { 4, 0, 0, 0, 0, 0, 0, 0, 10, 1, 2, 3 };
        const unsigned char record6[24] = { 6, 0, 0, 0, 9, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7 };
        uint32_t count = 0;

        (void) n;
        memset(out, 0, 8);
        out[0] = 1;
        if (q[1] == ASK_HOST_BY_NAME || q[1] == ASK_HOST_BY_ADDRESS) {
                put(&p, "deb", 3);
                out[2] = 3;
                if (q[2] != 6)
                        put(&p, record4, 24), count++;
                if (q[2] != 4)
                        put(&p, record6, 24), count++;
        } else {
                const unsigned char ids[8] = { 0, 0, 8, 0, 0xfe, 0xff, 0, 0 };

                put(&p, "vu-deb-0", 8);
                put(&p, "UID 0 of Container deb", 22);
                put(&p, ids, 8);
                out[2] = 8;
                out[3] = 22;
                count = 1;
        }
        out[4] = (unsigned char) count;
        return (size_t) (p - out);
}

static void *serve(void *unused) {
        (void) unused;
        for (;;) {
                static unsigned char reply[70000];
                unsigned char q[256];
                ssize_t n;
                size_t size;
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

                if (fd < 0)
                        return NULL;
                if (mode == CLOSING) {
                        close(fd);
                        continue;
                }
                n = recv(fd, q, sizeof q, 0);
                if (n < 8) {
                        close(fd);
                        continue;
                }
                asked_family = q[2];
                switch (mode) {
                case SILENT:
                        /* until the asker gives up */
                        while (recv(fd, q, sizeof q, 0) > 0)
                                ;
                        close(fd);
                        continue;
                case FUZZ:
                        size = good_reply(q, (size_t) n, reply);
                        for (int i = 0, k = rand_r(&seed) % 8; i < k; i++)
                                reply[(unsigned) rand_r(&seed) % size] = (unsigned char) rand_r(&seed);
                        if (rand_r(&seed) % 3 == 0)
                                size = (size_t) rand_r(&seed) % (size + 30);
                        break;
                case HUGE_REPLY:
                        size = good_reply(q, (size_t) n, reply);
                        reply[4] = 255, reply[5] = 255;
                        size = sizeof reply;
                        break;
                case HUGE_COUNT:
                        /* Counts whose sum of bytes overflows to what is there, among others. */
                        size = good_reply(q, (size_t) n, reply);
                        for (int i = 4; i < 8; i++)
                                reply[i] = rand_r(&seed) % 3 == 0 ? 0xff : (unsigned char) rand_r(&seed);
                        break;
                case DRIP:
                        /* a byte at a time: each is a record, and none a reply */
                        size = good_reply(q, (size_t) n, reply);
                        for (size_t i = 0; i < size; i++)
                                if (send(fd, reply + i, 1, MSG_NOSIGNAL) != 1)
                                        break;
                        close(fd);
                        continue;
                case SLOW:
                        size = good_reply(q, (size_t) n, reply);
                        usleep(MACHINED_NSS_TIMEOUT_MS * 1000 / 4);
                        break;
                case NOT_FOUND:
                case UNAVAILABLE:
                        memset(reply, 0, 8);
                        reply[0] = 1;
                        reply[1] = mode == NOT_FOUND ? ASK_NOT_FOUND : ASK_UNAVAILABLE;
                        size = 8;
                        break;
                default:
                        size = good_reply(q, (size_t) n, reply);
                }
                if (mode == FDS) {
                        union {
                                struct cmsghdr h;
                                char space[CMSG_SPACE(sizeof(int) * 8)];
                        } c;
                        struct iovec iov = { reply, size };
                        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
                        int fds[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };

                        memset(&c, 0, sizeof c);
                        c.h.cmsg_len = CMSG_LEN(sizeof fds);
                        c.h.cmsg_level = SOL_SOCKET;
                        c.h.cmsg_type = SCM_RIGHTS;
                        memcpy(CMSG_DATA(&c.h), fds, sizeof fds);
                        (void) sendmsg(fd, &m, MSG_NOSIGNAL);
                } else
                        (void) send(fd, reply, size, MSG_NOSIGNAL);
                close(fd);
        }
}

static int open_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;

        REQUIRE(d != NULL);
        while (readdir(d) != NULL)
                n++;
        closedir(d);
        return n;
}

static double now(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static void right_answers(void) {
        static char buffer[1024];
        struct gaih_addrtuple *tuple = NULL, first;
        struct hostent host;
        struct passwd pwd;
        struct group grp;
        int e = 0, h = 0;
        int32_t ttl = -1;
        char *canonical = NULL;
        const unsigned char ip[4] = { 10, 1, 2, 3 };

        errno = 77;
        REQUIRE(name4("deb", &tuple, buffer, sizeof buffer, &e, &h, &ttl) == NSS_STATUS_SUCCESS);
        REQUIRE(errno == 77);
        REQUIRE(tuple->family == AF_INET && memcmp(tuple->addr, ip, 4) == 0 && tuple->scopeid == 0);
        REQUIRE(strcmp(tuple->name, "deb") == 0 && tuple->next->family == AF_INET6 && tuple->next->scopeid == 9);
        REQUIRE(tuple->next->next == NULL && ttl == 0 && h == NETDB_SUCCESS);
        tuple = &first;
        REQUIRE(name4("deb", &tuple, buffer, sizeof buffer, &e, &h, NULL) == NSS_STATUS_SUCCESS);
        REQUIRE(tuple == &first && first.family == AF_INET && first.next->family == AF_INET6);
        REQUIRE(name3("deb.", AF_INET6, &host, buffer, sizeof buffer, &e, &h, &ttl, &canonical) == NSS_STATUS_SUCCESS);
        REQUIRE(host.h_addrtype == AF_INET6 && host.h_length == 16 && host.h_addr_list[1] == NULL);
        REQUIRE(canonical != NULL && strcmp(canonical, "deb") == 0 && host.h_aliases[0] == NULL);
        REQUIRE(asked_family == 0);
        REQUIRE(name3("deb", AF_INET6, &host, buffer, sizeof buffer, &e, &h, &ttl, NULL) == NSS_STATUS_SUCCESS);
        REQUIRE(asked_family == 6 && host.h_addr_list[0] != NULL && host.h_addr_list[1] == NULL);
        REQUIRE(name2("deb", AF_INET, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
        REQUIRE(memcmp(host.h_addr_list[0], ip, 4) == 0 && strcmp(host.h_name, "deb") == 0);
        REQUIRE(addr1(ip, 4, AF_INET, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
        REQUIRE(strcmp(host.h_name, "deb") == 0 && memcmp(host.h_addr_list[0], ip, 4) == 0);
        REQUIRE(pwnam("vu-deb-0", &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS);
        REQUIRE(pwd.pw_uid == 524288 && pwd.pw_gid == 65534 && strcmp(pwd.pw_name, "vu-deb-0") == 0);
        REQUIRE(strcmp(pwd.pw_dir, "/") == 0 && strcmp(pwd.pw_shell, "/usr/sbin/nologin") == 0);
        REQUIRE(strcmp(pwd.pw_gecos, "UID 0 of Container deb") == 0);
        REQUIRE(pwuid(524288, &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS);
        REQUIRE(grnam("vg-deb-0", &grp, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS);
        REQUIRE(grp.gr_gid == 524288 && grp.gr_mem[0] == NULL);
        REQUIRE(grgid(524288, &grp, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS);
}

/* Every buffer size, at every alignment: ERANGE, then success, and never a
 * byte outside (the sanitizers watch the heap block). */
static void short_buffers(void) {
        for (size_t offset = 0; offset < 8; offset++) {
                bool ok = false;

                for (size_t size = 0; size < 260; size++) {
                        char *block = malloc(offset + size + 1);
                        struct gaih_addrtuple *tuple = NULL;
                        struct hostent host;
                        struct passwd pwd;
                        struct group grp;
                        enum nss_status s[5];
                        int e[5] = { 0 }, h = 0;
                        const unsigned char ip[4] = { 10, 1, 2, 3 };

                        REQUIRE(block != NULL);
                        block = realloc(block, offset + size + 0 ? offset + size : 1);
                        s[0] = name4("deb", &tuple, block + offset, size, &e[0], &h, NULL);
                        s[1] = name2("deb", AF_INET6, &host, block + offset, size, &e[1], &h);
                        s[2] = pwnam("vu-deb-0", &pwd, block + offset, size, &e[2]);
                        s[3] = grnam("vg-deb-0", &grp, block + offset, size, &e[3]);
                        s[4] = addr1(ip, 4, AF_INET, &host, block + offset, size, &e[4], &h);
                        ok = true;
                        for (int i = 0; i < 5; i++) {
                                REQUIRE(s[i] == NSS_STATUS_SUCCESS || (s[i] == NSS_STATUS_TRYAGAIN && e[i] == ERANGE));
                                ok = ok && s[i] == NSS_STATUS_SUCCESS;
                        }
                        free(block);
                }
                REQUIRE(ok);
        }
}

/* Names that no machine has are not asked for: the server is silent here. */
static void refused_names(void) {
        static const char *const hosts[] = { "", ".", "-a", "a-", "a..b", "a_b", "a/b", "a b", "a\nb", "\xff", "deb..", ".host",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" };
        static const char *const users[] = { "", "root", "vu-", "vu-deb", "vu-deb-", "vu--0", "vg-deb-0", "vu-deb-x", "vu-a/b-0", "vu-.-0" };
        char buffer[512];
        struct hostent host;
        struct passwd pwd;
        struct group grp;
        int e, h;

        mode = SILENT;
        for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
                REQUIRE(name1(hosts[i], &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_NOTFOUND);
        for (size_t i = 0; i < sizeof users / sizeof *users; i++)
                REQUIRE(pwnam(users[i], &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_NOTFOUND);
        REQUIRE(pwuid(1000, &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_NOTFOUND);
        REQUIRE(pwuid((uid_t) -1, &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_NOTFOUND);
        REQUIRE(grgid(0, &grp, buffer, sizeof buffer, &e) == NSS_STATUS_NOTFOUND);
        REQUIRE(addr1("abc", 3, AF_INET, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL);
        REQUIRE(addr1("abcd", 4, AF_UNIX, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL);
        REQUIRE(name2("deb", AF_UNIX, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL);
        mode = GOOD;
}

static void tick(int sig) {
        (void) sig;
}

static void bad_servers(void) {
        char buffer[512];
        struct hostent host;
        int e = 0, h = 0;
        const double wait = MACHINED_NSS_TIMEOUT_MS / 1000.0;
        double start;
        struct itimerval every = { { 0, 20000 }, { 0, 20000 } }, never = { { 0, 0 }, { 0, 0 } };
        struct sigaction act;

        mode = CLOSING;
        for (int i = 0; i < 200; i++)
                REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && h == NO_RECOVERY);
        mode = HUGE_REPLY;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && e == EBADMSG);
        mode = HUGE_COUNT;
        for (int i = 0; i < 200; i++)
                REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && e == EBADMSG);
        mode = DRIP;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && e == EBADMSG);
        mode = SLOW;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
        mode = NOT_FOUND;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_NOTFOUND && h == HOST_NOT_FOUND);
        mode = UNAVAILABLE;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL);
        mode = FDS;
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
        /* A storm of signals neither shortens nor lengthens the wait. */
        memset(&act, 0, sizeof act);
        act.sa_handler = tick;
        REQUIRE(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &every, NULL) == 0);
        mode = SILENT;
        start = now();
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_TRYAGAIN && e == EAGAIN && h == TRY_AGAIN);
        REQUIRE(now() - start > 0.8 * wait && now() - start < wait + 2.0);
        REQUIRE(setitimer(ITIMER_REAL, &never, NULL) == 0);
        mode = GOOD;
}

static void fuzzed_server(int rounds) {
        char buffer[700];

        mode = FUZZ;
        for (int i = 0; i < rounds; i++) {
                struct gaih_addrtuple *tuple = NULL;
                struct hostent host;
                struct passwd pwd;
                struct group grp;
                int e = 0, h = 0;
                const unsigned char ip[16] = { 10, 1, 2, 3 };

                if (name4("deb", &tuple, buffer, sizeof buffer, &e, &h, NULL) == NSS_STATUS_SUCCESS)
                        for (; tuple != NULL; tuple = tuple->next)
                                REQUIRE(tuple->family == AF_INET || tuple->family == AF_INET6);
                if (name2("deb", AF_INET6, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS)
                        REQUIRE(host.h_addr_list[0] != NULL && strlen(host.h_name) < 256);
                if (addr1(ip, 4, AF_INET, &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS)
                        REQUIRE(memcmp(host.h_addr_list[0], ip, 4) == 0);
                if (pwuid(524288, &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS)
                        REQUIRE(strpbrk(pwd.pw_name, ":\n") == NULL && strpbrk(pwd.pw_gecos, ":\n") == NULL);
                if (grgid(524288, &grp, buffer, sizeof buffer, &e) == NSS_STATUS_SUCCESS)
                        REQUIRE(strpbrk(grp.gr_name, ":\n") == NULL);
        }
        mode = GOOD;
}

static int lookups;

static void *hammer(void *unused) {
        (void) unused;
        for (int i = 0; i < lookups; i++)
        {
                        char buffer[512];
                        struct hostent host;
                        int e = 0, h = 0;

                        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
                        REQUIRE(host.h_addr_list[0][0] == 10);
                }
        return NULL;
}

static void threads_and_forks(int threads) {
        pthread_t t[32];

        REQUIRE(threads <= 32);
        for (int i = 0; i < threads; i++)
                REQUIRE(pthread_create(&t[i], NULL, hammer, NULL) == 0);
        for (int i = 0; i < 20; i++) {
                int status;
                pid_t pid = fork();

                REQUIRE(pid >= 0);
                if (pid == 0) {
                        /* the server is the parent's thread */
                        char buffer[512];
                        struct hostent host;
                        int e = 0, h = 0;

                        _exit(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS ? 0 : 1);
                }
                REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
        }
        for (int i = 0; i < threads; i++)
                REQUIRE(pthread_join(t[i], NULL) == 0);
}

static void away(void) {
        char buffer[512];
        struct hostent host;
        struct passwd pwd;
        int e = 0, h = 0;

        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && h == NO_RECOVERY);
        REQUIRE(pwuid(524288, &pwd, buffer, sizeof buffer, &e) == NSS_STATUS_UNAVAIL);
}

static void recursion(void) {
        char buffer[512];
        struct hostent host;
        int e = 0, h = 0;

        REQUIRE(setenv("SYSTEMD_ACTIVATION_UNIT", "systemd-machined.service", 1) == 0);
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_UNAVAIL && e == EDEADLK);
        REQUIRE(unsetenv("SYSTEMD_ACTIVATION_UNIT") == 0);
        REQUIRE(name1("deb", &host, buffer, sizeof buffer, &e, &h) == NSS_STATUS_SUCCESS);
}

static void *symbol(void *module, const char *name) {
        void *p = dlsym(module, name);

        if (p == NULL) {
                fprintf(stderr, "%s\n", dlerror());
                exit(1);
        }
        return p;
}

int main(int argc, char *argv[]) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int rounds = argc > 2 ? atoi(argv[2]) : 2000, before;
        pthread_t server;
        void *module;

        REQUIRE(argc > 1);
        module = dlopen(argv[1], RTLD_NOW);
        if (module == NULL) {
                fprintf(stderr, "%s\n", dlerror());
                return 1;
        }
        *(void **) &name4 = symbol(module, "_nss_mymachines_gethostbyname4_r");
        *(void **) &name3 = symbol(module, "_nss_mymachines_gethostbyname3_r");
        *(void **) &name2 = symbol(module, "_nss_mymachines_gethostbyname2_r");
        *(void **) &name1 = symbol(module, "_nss_mymachines_gethostbyname_r");
        *(void **) &addr1 = symbol(module, "_nss_mymachines_gethostbyaddr_r");
        symbol(module, "_nss_mymachines_gethostbyaddr2_r");
        *(void **) &pwnam = symbol(module, "_nss_mymachines_getpwnam_r");
        *(void **) &pwuid = symbol(module, "_nss_mymachines_getpwuid_r");
        *(void **) &grnam = symbol(module, "_nss_mymachines_getgrnam_r");
        *(void **) &grgid = symbol(module, "_nss_mymachines_getgrgid_r");
        REQUIRE(dlsym(module, "ask") == NULL);

        unlink(MACHINED_NSS_SOCKET);
        away(); /* no socket */
        strcpy(address.sun_path, MACHINED_NSS_SOCKET);
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *) &address, sizeof address) == 0);
        away(); /* nobody listens */
        REQUIRE(listen(listener, 64) == 0);
        REQUIRE(pthread_create(&server, NULL, serve, NULL) == 0);

        before = open_fds();
        right_answers();
        short_buffers();
        refused_names();
        bad_servers();
        fuzzed_server(rounds);
        recursion();
        lookups = rounds / 8;
        threads_and_forks(16);
        REQUIRE(open_fds() == before || (usleep(100000), open_fds() == before));
        shutdown(listener, SHUT_RDWR);
        REQUIRE(pthread_join(server, NULL) == 0);
        close(listener);
        unlink(MACHINED_NSS_SOCKET);
        away();
        puts("ok");
        return 0;
}
