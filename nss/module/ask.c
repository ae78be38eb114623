#define _GNU_SOURCE
#include "ask.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef MACHINED_NSS_TIMEOUT_MS
#define MACHINED_NSS_TIMEOUT_MS 2000
#endif

static int64_t now_us(void) {
        struct timespec ts;

        if (clock_gettime(CLOCK_MONOTONIC, &ts) < 0)
                return 0;
        return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* A blocking connect() waits for room in the backlog as long as SO_SNDTIMEO
 * says (unix(7) has no other way to wait for that), a signal cuts it short. */
static int connect_until(int fd, int64_t deadline) {
        static const struct sockaddr_un address = {
                .sun_family = AF_UNIX,
                .sun_path = MACHINED_NSS_SOCKET,
        };

        for (;;) {
                int64_t left = deadline - now_us();
                struct timeval tv;

                if (left <= 0)
                        return -ETIMEDOUT;
                tv.tv_sec = (time_t) (left / 1000000);
                tv.tv_usec = (suseconds_t) (left % 1000000);
                if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) < 0)
                        return -errno;
                if (connect(fd, (const struct sockaddr *) &address, sizeof address) == 0)
                        return 0;
                if (errno == EAGAIN)
                        return -ETIMEDOUT;
                if (errno != EINTR)
                        return -errno;
        }
}

static int wait_until(int fd, short events, int64_t deadline) {
        for (;;) {
                struct pollfd p = { .fd = fd, .events = events };
                int64_t left = deadline - now_us();
                int r;

                if (left <= 0)
                        return -ETIMEDOUT;
                r = poll(&p, 1, (int) ((left + 999) / 1000));
                if (r > 0)
                        return 0;
                if (r == 0)
                        return -ETIMEDOUT;
                if (errno != EINTR)
                        return -errno;
        }
}

static int send_until(int fd, const void *data, size_t len, int64_t deadline) {
        for (;;) {
                ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
                int r;

                if (n == (ssize_t) len)
                        return 0;
                if (n >= 0)
                        return -EIO;
                if (errno == EINTR)
                        continue;
                if (errno != EAGAIN)
                        return -errno;
                r = wait_until(fd, POLLOUT, deadline);
                if (r < 0)
                        return r;
        }
}

static ssize_t receive_until(int fd, void *data, size_t size, int64_t deadline) {
        for (;;) {
                ssize_t n;
                int r = wait_until(fd, POLLIN, deadline);

                if (r < 0)
                        return r;
                /* Plain recv: descriptors that come along are closed by the kernel. */
                n = recv(fd, data, size, MSG_DONTWAIT);
                if (n > 0)
                        return n;
                if (n == 0)
                        return -ECONNRESET;
                if (errno != EINTR && errno != EAGAIN)
                        return -errno;
        }
}

uint32_t ask_u32(const unsigned char *p) {
        return (uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

static void put_u32(unsigned char *p, uint32_t v) {
        p[0] = (unsigned char) v;
        p[1] = (unsigned char) (v >> 8);
        p[2] = (unsigned char) (v >> 16);
        p[3] = (unsigned char) (v >> 24);
}

static bool plain_text(const char *s, size_t n) {
        for (size_t i = 0; i < n; i++)
                /* Nothing that would break a line of passwd(5), nor a terminal. */
                if ((unsigned char) s[i] < 0x20 || (unsigned char) s[i] == 0x7f || s[i] == ':')
                        return false;
        return true;
}

static int check(enum ask_op op, size_t size, struct ask_reply *r) {
        const unsigned char *raw = r->raw;
        bool host = op == ASK_HOST_BY_NAME || op == ASK_HOST_BY_ADDRESS;
        size_t width = host ? 24 : 8;

        if (size < 8 || raw[0] != 1 || raw[1] > ASK_TRY_AGAIN)
                return -EBADMSG;
        r->status = (enum ask_status) raw[1];
        if (r->status != ASK_FOUND)
                return 0;
        r->name_len = raw[2];
        r->comment_len = raw[3];
        r->count = ask_u32(raw + 4);
        if (r->name_len == 0 || r->name_len > ASK_NAME_MAX || r->comment_len > ASK_COMMENT_MAX ||
            r->count > ASK_ADDRESSES_MAX || (!host && r->count != 1) ||
            size != 8 + r->name_len + r->comment_len + r->count * width)
                return -EBADMSG;
        r->name = (const char *) raw + 8;
        r->comment = r->name + r->name_len;
        r->records = raw + 8 + r->name_len + r->comment_len;
        if (!plain_text(r->name, r->name_len) || !plain_text(r->comment, r->comment_len))
                return -EBADMSG;
        if (host)
                for (size_t i = 0; i < r->count; i++)
                        if (r->records[i * 24] != 4 && r->records[i * 24] != 6)
                                return -EBADMSG;
        return 0;
}

void ask_address_at(const struct ask_reply *reply, size_t i, struct ask_address *ret) {
        const unsigned char *p = reply->records + i * 24;

        ret->family = p[0];
        ret->scope = ask_u32(p + 4);
        memcpy(ret->bytes, p + 8, 16);
}

static int talk(int fd, enum ask_op op, uint8_t family, uint32_t id, const void *data, size_t len, struct ask_reply *reply) {
        int64_t deadline = now_us() + (int64_t) MACHINED_NSS_TIMEOUT_MS * 1000;
        unsigned char request[8 + ASK_NAME_MAX];
        ssize_t n;
        int r;

        if (len > ASK_NAME_MAX)
                return -EINVAL;
        request[0] = 1;
        request[1] = (unsigned char) op;
        request[2] = family;
        request[3] = (unsigned char) len;
        put_u32(request + 4, id);
        if (len > 0)
                memcpy(request + 8, data, len);
        r = connect_until(fd, deadline);
        if (r < 0)
                return r;
        r = send_until(fd, request, 8 + len, deadline);
        if (r < 0)
                return r;
        n = receive_until(fd, reply->raw, sizeof reply->raw, deadline);
        if (n < 0)
                return (int) n;
        return check(op, (size_t) n, reply);
}

int ask(enum ask_op op, uint8_t family, uint32_t id, const void *data, size_t len, struct ask_reply *reply) {
        int saved = errno, fd, r;

        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                r = -errno;
        else {
                r = talk(fd, op, family, id, data, len, reply);
                close(fd);
        }
        errno = saved;
        return r;
}
