/* Looks names up by the system's resolver, from many threads at once.
 *
 *   storm THREADS LOOKUPS NAME...   every answer is an address or "not known"
 *   storm 1 LOOKUPS NAME            and prints the median time of a lookup, in ns
 *
 * Exits 1 when any lookup has another error, and says which. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static char **names;
static int nnames;
static atomic_long left, found, unknown, other;
static long long *took;
static long lookups;

static void *work(void *arg) {
        unsigned seed = (unsigned) (size_t) arg;
        long n;
        while ((n = atomic_fetch_sub(&left, 1)) > 0) {
                struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *res = NULL;
                const char *name = names[rand_r(&seed) % nnames];
                struct timespec a, b;
                clock_gettime(CLOCK_MONOTONIC, &a);
                int r = getaddrinfo(name, NULL, &hints, &res);
                clock_gettime(CLOCK_MONOTONIC, &b);
                took[lookups - n] = (b.tv_sec - a.tv_sec) * 1000000000LL + b.tv_nsec - a.tv_nsec;
                if (r == 0 && res && res->ai_addr->sa_family == AF_INET)
                        atomic_fetch_add(&found, 1);
                else if (r == EAI_NONAME || r == EAI_NODATA)
                        atomic_fetch_add(&unknown, 1);
                else {
                        atomic_fetch_add(&other, 1);
                        fprintf(stderr, "%s: %s (%s)\n", name, gai_strerror(r), strerror(errno));
                }
                if (r == 0)
                        freeaddrinfo(res);
        }
        return NULL;
}

static int by_time(const void *a, const void *b) {
        long long x = *(const long long *) a, y = *(const long long *) b;
        return (x > y) - (x < y);
}

int main(int argc, char **argv) {
        pthread_t threads[256];
        if (argc < 4)
                return 2;
        int n = atoi(argv[1]);
        lookups = atol(argv[2]);
        names = argv + 3;
        nnames = argc - 3;
        if (n < 1 || n > 256 || lookups < 1 || !(took = calloc(lookups, sizeof *took)))
                return 2;
        left = lookups;
        for (long i = 0; i < n; i++)
                if (pthread_create(&threads[i], NULL, work, (void *) i) != 0)
                        return 2;
        for (int i = 0; i < n; i++)
                pthread_join(threads[i], NULL);
        qsort(took, lookups, sizeof *took, by_time);
        printf("found %ld unknown %ld other %ld p50 %lld p99 %lld\n", found, unknown, other,
               took[lookups / 2], took[lookups * 99 / 100]);
        return other != 0;
}
