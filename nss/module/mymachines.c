/* libnss_mymachines: host, user and group names of machines, for nsswitch.conf(5).
 *
 * It uses libc only, keeps no state at all (so threads and forks need no care),
 * puts every result into the caller's buffer, and gives up after two seconds.
 * machined does the work; while it is away every answer is "unavailable".
 */
#define _GNU_SOURCE
#include "ask.h"

#include <errno.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <nss.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

#define FIRST_MAPPED_ID 65536u /* lower ones are the host's own */
#define MACHINE_NAME_MAX 64u

/* machined itself, and what PID 1 runs to start it, must not wait for machined. */
static bool starting_machined(void) {
        const char *unit = secure_getenv("SYSTEMD_ACTIVATION_UNIT");
        const char *scope = secure_getenv("SYSTEMD_ACTIVATION_SCOPE");

        if (secure_getenv("MACHINED_NSS_BYPASS") != NULL)
                return true;
        return unit != NULL && strcmp(unit, "systemd-machined.service") == 0 &&
               (scope == NULL || strcmp(scope, "system") == 0);
}

static bool alnum(char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* Labels of letters, digits and inner dashes, joined by single dots, at most 64. */
static bool machine_name(const char *s, size_t n) {
        if (n == 0 || n > MACHINE_NAME_MAX)
                return false;
        for (size_t i = 0; i < n; i++) {
                bool first = i == 0 || s[i - 1] == '.', last = i + 1 == n || s[i + 1] == '.';

                if (s[i] == '.' || s[i] == '-') {
                        if (first || last)
                                return false;
                } else if (!alnum(s[i]))
                        return false;
        }
        return true;
}

/* vu-MACHINE-ID or vg-MACHINE-ID. */
static bool mapped_name(const char *s, size_t n, char kind) {
        size_t dash = n;

        if (n < 6 || n > ASK_NAME_MAX || s[0] != 'v' || s[1] != kind || s[2] != '-')
                return false;
        while (dash > 3 && s[dash - 1] >= '0' && s[dash - 1] <= '9')
                dash--;
        return dash < n && dash > 4 && s[dash - 1] == '-' && machine_name(s + 3, dash - 1 - 3);
}

/* A cursor over the caller's buffer. */
struct space {
        char *next;
        size_t left;
};

/* n bytes that can hold a pointer, or NULL: the buffer is too small. */
static void *reserve(struct space *s, size_t n) {
        size_t pad = (sizeof(void *) - (uintptr_t) s->next % sizeof(void *)) % sizeof(void *);
        void *p;

        if (s->left < pad || s->left - pad < n)
                return NULL;
        p = s->next + pad;
        s->next += pad + n;
        s->left -= pad + n;
        return p;
}

static char *put_text(struct space *s, const char *text, size_t n) {
        char *p = s->left > n ? s->next : NULL;

        if (p == NULL)
                return NULL;
        memcpy(p, text, n);
        p[n] = '\0';
        s->next += n + 1;
        s->left -= n + 1;
        return p;
}

static enum nss_status fail(int *errnop, int *h_errnop, int error, int h_error, enum nss_status status) {
        *errnop = error;
        if (h_errnop != NULL)
                *h_errnop = h_error;
        return status;
}

static enum nss_status too_small(int *errnop, int *h_errnop) {
        return fail(errnop, h_errnop, ERANGE, NETDB_INTERNAL, NSS_STATUS_TRYAGAIN);
}

static enum nss_status unknown(int *errnop, int *h_errnop) {
        return fail(errnop, h_errnop, ENOENT, HOST_NOT_FOUND, NSS_STATUS_NOTFOUND);
}

/* What the daemon said, or why it could not be asked. */
static enum nss_status verdict(int r, const struct ask_reply *reply, int *errnop, int *h_errnop) {
        if (r == -ETIMEDOUT)
                /* Not ERANGE, so nobody takes it for a short buffer. */
                return fail(errnop, h_errnop, EAGAIN, TRY_AGAIN, NSS_STATUS_TRYAGAIN);
        if (r < 0)
                return fail(errnop, h_errnop, -r == ERANGE ? EIO : -r, NO_RECOVERY, NSS_STATUS_UNAVAIL);
        switch (reply->status) {
        case ASK_FOUND:
                return NSS_STATUS_SUCCESS;
        case ASK_NOT_FOUND:
                return unknown(errnop, h_errnop);
        case ASK_TRY_AGAIN:
                return fail(errnop, h_errnop, EAGAIN, TRY_AGAIN, NSS_STATUS_TRYAGAIN);
        default:
                return fail(errnop, h_errnop, EHOSTDOWN, NO_RECOVERY, NSS_STATUS_UNAVAIL);
        }
}

static enum nss_status ask_host(const char *name, uint8_t family, struct ask_reply *reply, int *errnop, int *h_errnop) {
        size_t n = strnlen(name, MACHINE_NAME_MAX + 2);

        /* A name can be written with the root's dot. */
        if (n > 1 && name[n - 1] == '.')
                n--;
        if (!machine_name(name, n))
                return unknown(errnop, h_errnop);
        if (starting_machined())
                return fail(errnop, h_errnop, EDEADLK, NO_RECOVERY, NSS_STATUS_UNAVAIL);
        return verdict(ask(ASK_HOST_BY_NAME, family, 0, name, n, reply), reply, errnop, h_errnop);
}

/* Fills a hostent of one family; reply holds at least one address of it. */
static enum nss_status fill_hostent(const struct ask_reply *reply, int af, const void *only, struct hostent *host,
                                    char *buffer, size_t size, int32_t *ttlp, char **canonp, int *errnop, int *h_errnop) {
        struct space s = { buffer, size };
        size_t width = af == AF_INET ? 4 : 16, count = 0;
        uint8_t family = af == AF_INET ? 4 : 6;
        char **list, **aliases, *bytes;
        struct ask_address a;

        for (size_t i = 0; i < reply->count; i++) {
                ask_address_at(reply, i, &a);
                count += a.family == family;
        }
        if (only != NULL)
                count = 1;
        if (count == 0)
                /* The name is a machine's, so nobody else is to be asked: DNS could
                 * only be slow, or speak of another host. */
                return fail(errnop, h_errnop, ENOENT, NO_DATA, NSS_STATUS_RETURN);

        aliases = reserve(&s, sizeof *aliases);
        if (aliases == NULL)
                return too_small(errnop, h_errnop);
        list = reserve(&s, (count + 1) * sizeof *list);
        if (list == NULL)
                return too_small(errnop, h_errnop);
        bytes = reserve(&s, count * width);
        if (bytes == NULL)
                return too_small(errnop, h_errnop);
        host->h_name = put_text(&s, reply->name, reply->name_len);
        if (host->h_name == NULL)
                return too_small(errnop, h_errnop);

        aliases[0] = NULL;
        count = 0;
        if (only != NULL) {
                memcpy(bytes, only, width);
                list[count++] = bytes;
        } else
                for (size_t i = 0; i < reply->count; i++) {
                        ask_address_at(reply, i, &a);
                        if (a.family != family)
                                continue;
                        memcpy(bytes + count * width, a.bytes, width);
                        list[count] = bytes + count * width;
                        count++;
                }
        list[count] = NULL;
        host->h_aliases = aliases;
        host->h_addrtype = af;
        host->h_length = (int) width;
        host->h_addr_list = list;
        if (ttlp != NULL)
                *ttlp = 0; /* addresses change: nothing is to be cached */
        if (canonp != NULL)
                *canonp = host->h_name;
        *h_errnop = NETDB_SUCCESS;
        return NSS_STATUS_SUCCESS;
}

PUBLIC enum nss_status _nss_mymachines_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat, char *buffer, size_t size,
                                                        int *errnop, int *h_errnop, int32_t *ttlp);

enum nss_status _nss_mymachines_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat, char *buffer, size_t size,
                                                 int *errnop, int *h_errnop, int32_t *ttlp) {
        struct ask_reply reply;
        struct space s = { buffer, size };
        struct gaih_addrtuple *tuples;
        enum nss_status status;
        char *canonical;

        status = ask_host(name, 0, &reply, errnop, h_errnop);
        if (status != NSS_STATUS_SUCCESS)
                return status;
        if (reply.count == 0)
                return fail(errnop, h_errnop, ENOENT, NO_DATA, NSS_STATUS_NOTFOUND);
        tuples = reserve(&s, reply.count * sizeof *tuples);
        if (tuples == NULL)
                return too_small(errnop, h_errnop);
        canonical = put_text(&s, reply.name, reply.name_len);
        if (canonical == NULL)
                return too_small(errnop, h_errnop);
        for (size_t i = 0; i < reply.count; i++) {
                struct ask_address a;

                ask_address_at(&reply, i, &a);
                memset(&tuples[i], 0, sizeof tuples[i]);
                tuples[i].next = i + 1 < reply.count ? &tuples[i + 1] : NULL;
                tuples[i].name = canonical;
                tuples[i].family = a.family == 4 ? AF_INET : AF_INET6;
                tuples[i].scopeid = a.scope;
                memcpy(tuples[i].addr, a.bytes, a.family == 4 ? 4 : 16);
        }
        /* glibc may hand in a first tuple of its own. */
        if (*pat != NULL)
                **pat = tuples[0];
        else
                *pat = tuples;
        if (ttlp != NULL)
                *ttlp = 0;
        *h_errnop = NETDB_SUCCESS;
        return NSS_STATUS_SUCCESS;
}

PUBLIC enum nss_status _nss_mymachines_gethostbyname3_r(const char *name, int af, struct hostent *host, char *buffer, size_t size,
                                                        int *errnop, int *h_errnop, int32_t *ttlp, char **canonp);

enum nss_status _nss_mymachines_gethostbyname3_r(const char *name, int af, struct hostent *host, char *buffer, size_t size,
                                                 int *errnop, int *h_errnop, int32_t *ttlp, char **canonp) {
        struct ask_reply reply;
        enum nss_status status;

        if (af == AF_UNSPEC)
                af = AF_INET;
        if (af != AF_INET && af != AF_INET6)
                return fail(errnop, h_errnop, EAFNOSUPPORT, NO_DATA, NSS_STATUS_UNAVAIL);
        /* Who wants the canonical name asks for all that there is, as `getent
         * ahostsv6`; the others for addresses to connect to, of which a
         * link-local one is none without the scope that a hostent has no room for. */
        status = ask_host(name, canonp != NULL ? 0 : af == AF_INET ? 4 : 6, &reply, errnop, h_errnop);
        if (status != NSS_STATUS_SUCCESS)
                return status;
        return fill_hostent(&reply, af, NULL, host, buffer, size, ttlp, canonp, errnop, h_errnop);
}

PUBLIC enum nss_status _nss_mymachines_gethostbyname2_r(const char *name, int af, struct hostent *host, char *buffer, size_t size,
                                                        int *errnop, int *h_errnop);

enum nss_status _nss_mymachines_gethostbyname2_r(const char *name, int af, struct hostent *host, char *buffer, size_t size,
                                                 int *errnop, int *h_errnop) {
        return _nss_mymachines_gethostbyname3_r(name, af, host, buffer, size, errnop, h_errnop, NULL, NULL);
}

PUBLIC enum nss_status _nss_mymachines_gethostbyname_r(const char *name, struct hostent *host, char *buffer, size_t size,
                                                       int *errnop, int *h_errnop);

enum nss_status _nss_mymachines_gethostbyname_r(const char *name, struct hostent *host, char *buffer, size_t size,
                                                int *errnop, int *h_errnop) {
        return _nss_mymachines_gethostbyname3_r(name, AF_INET, host, buffer, size, errnop, h_errnop, NULL, NULL);
}

PUBLIC enum nss_status _nss_mymachines_gethostbyaddr2_r(const void *address, socklen_t len, int af, struct hostent *host,
                                                        char *buffer, size_t size, int *errnop, int *h_errnop, int32_t *ttlp);

enum nss_status _nss_mymachines_gethostbyaddr2_r(const void *address, socklen_t len, int af, struct hostent *host,
                                                 char *buffer, size_t size, int *errnop, int *h_errnop, int32_t *ttlp) {
        struct ask_reply reply;
        enum nss_status status;

        if (af != AF_INET && af != AF_INET6)
                return fail(errnop, h_errnop, EAFNOSUPPORT, NO_DATA, NSS_STATUS_UNAVAIL);
        if (len != (af == AF_INET ? 4 : 16))
                return fail(errnop, h_errnop, EINVAL, NO_RECOVERY, NSS_STATUS_UNAVAIL);
        if (starting_machined())
                return fail(errnop, h_errnop, EDEADLK, NO_RECOVERY, NSS_STATUS_UNAVAIL);
        status = verdict(ask(ASK_HOST_BY_ADDRESS, af == AF_INET ? 4 : 6, 0, address, len, &reply), &reply, errnop, h_errnop);
        if (status != NSS_STATUS_SUCCESS)
                return status;
        return fill_hostent(&reply, af, address, host, buffer, size, ttlp, NULL, errnop, h_errnop);
}

PUBLIC enum nss_status _nss_mymachines_gethostbyaddr_r(const void *address, socklen_t len, int af, struct hostent *host,
                                                       char *buffer, size_t size, int *errnop, int *h_errnop);

enum nss_status _nss_mymachines_gethostbyaddr_r(const void *address, socklen_t len, int af, struct hostent *host,
                                                char *buffer, size_t size, int *errnop, int *h_errnop) {
        return _nss_mymachines_gethostbyaddr2_r(address, len, af, host, buffer, size, errnop, h_errnop, NULL);
}

/* Asks for a mapped user or group, by name if there is one, else by id. */
static enum nss_status ask_mapped(enum ask_op op, const char *name, uint32_t id, struct ask_reply *reply, int *errnop) {
        size_t n = 0;

        if (name != NULL) {
                n = strnlen(name, ASK_NAME_MAX + 1);
                if (!mapped_name(name, n, op == ASK_USER_BY_NAME ? 'u' : 'g'))
                        return unknown(errnop, NULL);
        } else if (id < FIRST_MAPPED_ID || id == UINT32_MAX)
                return unknown(errnop, NULL);
        if (starting_machined())
                return fail(errnop, NULL, EDEADLK, 0, NSS_STATUS_UNAVAIL);
        return verdict(ask(op, 0, id, name, n, reply), reply, errnop, NULL);
}

static enum nss_status fill_passwd(const struct ask_reply *reply, struct passwd *pwd, char *buffer, size_t size, int *errnop) {
        struct space s = { buffer, size };

        pwd->pw_uid = ask_u32(reply->records);
        pwd->pw_gid = ask_u32(reply->records + 4);
        if ((pwd->pw_name = put_text(&s, reply->name, reply->name_len)) == NULL ||
            (pwd->pw_gecos = put_text(&s, reply->comment, reply->comment_len)) == NULL ||
            (pwd->pw_passwd = put_text(&s, "x", 1)) == NULL ||
            (pwd->pw_dir = put_text(&s, "/", 1)) == NULL ||
            (pwd->pw_shell = put_text(&s, "/usr/sbin/nologin", strlen("/usr/sbin/nologin"))) == NULL)
                return too_small(errnop, NULL);
        return NSS_STATUS_SUCCESS;
}

static enum nss_status fill_group(const struct ask_reply *reply, struct group *grp, char *buffer, size_t size, int *errnop) {
        struct space s = { buffer, size };
        char **members = reserve(&s, sizeof *members);

        if (members == NULL)
                return too_small(errnop, NULL);
        members[0] = NULL;
        grp->gr_gid = ask_u32(reply->records);
        grp->gr_mem = members;
        if ((grp->gr_name = put_text(&s, reply->name, reply->name_len)) == NULL ||
            (grp->gr_passwd = put_text(&s, "x", 1)) == NULL)
                return too_small(errnop, NULL);
        return NSS_STATUS_SUCCESS;
}

PUBLIC enum nss_status _nss_mymachines_getpwnam_r(const char *name, struct passwd *pwd, char *buffer, size_t size, int *errnop);

enum nss_status _nss_mymachines_getpwnam_r(const char *name, struct passwd *pwd, char *buffer, size_t size, int *errnop) {
        struct ask_reply reply;
        enum nss_status status = ask_mapped(ASK_USER_BY_NAME, name, 0, &reply, errnop);

        return status == NSS_STATUS_SUCCESS ? fill_passwd(&reply, pwd, buffer, size, errnop) : status;
}

PUBLIC enum nss_status _nss_mymachines_getpwuid_r(uid_t uid, struct passwd *pwd, char *buffer, size_t size, int *errnop);

enum nss_status _nss_mymachines_getpwuid_r(uid_t uid, struct passwd *pwd, char *buffer, size_t size, int *errnop) {
        struct ask_reply reply;
        enum nss_status status = ask_mapped(ASK_USER_BY_ID, NULL, uid, &reply, errnop);

        return status == NSS_STATUS_SUCCESS ? fill_passwd(&reply, pwd, buffer, size, errnop) : status;
}

PUBLIC enum nss_status _nss_mymachines_getgrnam_r(const char *name, struct group *grp, char *buffer, size_t size, int *errnop);

enum nss_status _nss_mymachines_getgrnam_r(const char *name, struct group *grp, char *buffer, size_t size, int *errnop) {
        struct ask_reply reply;
        enum nss_status status = ask_mapped(ASK_GROUP_BY_NAME, name, 0, &reply, errnop);

        return status == NSS_STATUS_SUCCESS ? fill_group(&reply, grp, buffer, size, errnop) : status;
}

PUBLIC enum nss_status _nss_mymachines_getgrgid_r(gid_t gid, struct group *grp, char *buffer, size_t size, int *errnop);

enum nss_status _nss_mymachines_getgrgid_r(gid_t gid, struct group *grp, char *buffer, size_t size, int *errnop) {
        struct ask_reply reply;
        enum nss_status status = ask_mapped(ASK_GROUP_BY_ID, NULL, gid, &reply, errnop);

        return status == NSS_STATUS_SUCCESS ? fill_group(&reply, grp, buffer, size, errnop) : status;
}
