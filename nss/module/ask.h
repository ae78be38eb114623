/* ask: one bounded question to machined and its bounded answer.
 *
 * Wire format, one SOCK_SEQPACKET record each way, integers little-endian:
 *
 *   request:  u8 version (1), u8 operation, u8 family (0, 4, 6), u8 length,
 *             u32 id, then `length` bytes: a name, or an address.
 *   reply:    u8 version (1), u8 status, u8 name length, u8 comment length,
 *             u32 count, then the name and the comment (no NUL), then
 *             hosts: `count` records of 24 bytes: u8 family (4 or 6),
 *                    3 bytes zero, u32 scope id, 16 bytes address;
 *             users and groups: count is 1 and one record of 8 bytes follows:
 *                    u32 uid or gid, u32 the user's primary gid.
 */
#ifndef MACHINED_NSS_ASK_H
#define MACHINED_NSS_ASK_H

#include <stddef.h>
#include <stdint.h>

#ifndef MACHINED_NSS_SOCKET
#define MACHINED_NSS_SOCKET "/run/systemd/machine/nss"
#endif

enum ask_op {
        ASK_HOST_BY_NAME = 1,
        ASK_HOST_BY_ADDRESS = 2,
        ASK_USER_BY_NAME = 3,
        ASK_USER_BY_ID = 4,
        ASK_GROUP_BY_NAME = 5,
        ASK_GROUP_BY_ID = 6,
};

enum ask_status {
        ASK_FOUND = 0,
        ASK_NOT_FOUND = 1,
        ASK_UNAVAILABLE = 2,
        ASK_TRY_AGAIN = 3,
};

#define ASK_NAME_MAX 96    /* "vu-", a machine name of 64, "-", ten digits */
#define ASK_COMMENT_MAX 160
#define ASK_ADDRESSES_MAX 128
#define ASK_REPLY_MAX (8 + 255 + 255 + ASK_ADDRESSES_MAX * 24)

struct ask_address {
        uint8_t family; /* 4 or 6 */
        uint32_t scope;
        uint8_t bytes[16];
};

struct ask_reply {
        enum ask_status status;
        const char *name; /* in raw, NOT terminated */
        size_t name_len;
        const char *comment; /* likewise */
        size_t comment_len;
        size_t count;
        const unsigned char *records; /* in raw */
        unsigned char raw[ASK_REPLY_MAX + 1];
};

/* Asks and waits at most MACHINED_NSS_TIMEOUT_MS. Returns 0 and a checked
 * reply, or a negative errno: -ETIMEDOUT, -EBADMSG for an answer against the
 * format, or what kept us from asking. Keeps errno, allocates nothing, leaves
 * no descriptor open, raises no signal. */
int ask(enum ask_op op, uint8_t family, uint32_t id, const void *data, size_t len, struct ask_reply *reply);

/* The i-th address of a host reply. */
void ask_address_at(const struct ask_reply *reply, size_t i, struct ask_address *ret);

uint32_t ask_u32(const unsigned char *p);

#endif
