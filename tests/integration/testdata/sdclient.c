/* What a program linked to libsystemd does with machined: sd-login(3), which reads files and
 * cgroups, and sd-bus(3) with file descriptors and signals. sdclient MACHINE NEW prints a line for each
 * thing found; the program's result is 1 if a call failed that must not. NEW is the name of a machine
 * that it makes of a process of its own, and ends. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-login.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define NAME "org.freedesktop.machine1"
#define PATH "/org/freedesktop/machine1"
#define MANAGER NAME ".Manager"

static int failed;

static int must(const char *what, int r) {
	if (r < 0) {
		printf("FAILED %s: %s\n", what, strerror(-r));
		failed = 1;
	}
	return r;
}

static uint64_t now_ms(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void class_of(const char *name) {
	char *class = NULL;
	int r = sd_machine_get_class(name, &class);
	printf("class of '%s': %s\n", name, r < 0 ? strerrorname_np(-r) : class);
	free(class);
}

static void ifindices_of(const char *name) {
	int *ifs = NULL;
	int r = sd_machine_get_ifindices(name, &ifs);
	if (r < 0)
		printf("ifindices of '%s': %s\n", name, strerrorname_np(-r));
	else
		printf("ifindices of '%s': %d%s\n", name, r, r > 0 && ifs[0] > 0 ? ", the first is one" : "");
	free(ifs);
}

static void machine_of(const char *what, pid_t pid) {
	char *name = NULL, *unit = NULL, *slice = NULL;
	int r = sd_pid_get_machine_name(pid, &name);
	int u = sd_pid_get_unit(pid, &unit), s = sd_pid_get_slice(pid, &slice);
	printf("machine of %s: %s, unit %s, slice %s\n", what, r < 0 ? strerrorname_np(-r) : name, u < 0 ? strerrorname_np(-u) : unit,
	       s < 0 ? strerrorname_np(-s) : slice);
	free(name), free(unit), free(slice);
}

static void names(void) {
	char **list = NULL;
	int n = must("sd_get_machine_names", sd_get_machine_names(&list));
	printf("names:");
	for (int i = 0; i < n; i++)
		printf(" %s", list[i]);
	printf("\n");
	for (int i = 0; i < n; i++)
		free(list[i]);
	free(list);
}

/* wait_monitor waits until a monitor tells of something; how long it took is below a second. */
static void wait_monitor(const char *what, sd_login_monitor *m) {
	struct pollfd p = {.fd = sd_login_monitor_get_fd(m), .events = (short)sd_login_monitor_get_events(m)};
	int r = poll(&p, 1, 1000);
	printf("monitor after %s: %s\n", what, r > 0 ? "told" : "silent");
	sd_login_monitor_flush(m);
}

static uint32_t leader(sd_bus *bus, const char *name) {
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	const char *path;
	uint32_t pid = 0;
	if (must("GetMachine", sd_bus_call_method(bus, NAME, PATH, MANAGER, "GetMachine", &error, &reply, "s", name)) >= 0 &&
	    must("read path", sd_bus_message_read(reply, "o", &path)) >= 0)
		must("Leader", sd_bus_get_property_trivial(bus, NAME, path, NAME ".Machine", "Leader", &error, 'u', &pid));
	sd_bus_message_unref(reply);
	sd_bus_error_free(&error);
	return pid;
}

static int terminal(sd_bus *bus, const char *method, const char *name, int *ret_fd) {
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	const char *path;
	int fd, r;
	if (strcmp(method, "OpenMachineShell") == 0)
		r = sd_bus_call_method(bus, NAME, PATH, MANAGER, method, &error, &reply, "sssasas", name, "root", "/bin/sh", 3, "sh", "-c",
				       "tty; echo $GREETING; id -un", 1, "GREETING=hello");
	else
		r = sd_bus_call_method(bus, NAME, PATH, MANAGER, method, &error, &reply, "s", name);
	if (r < 0) {
		printf("%s: %s: %s\n", method, error.name, error.message);
		goto finish;
	}
	if ((r = must("read terminal", sd_bus_message_read(reply, "hs", &fd, &path))) < 0)
		goto finish;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	unsigned number;
	char expect[32];
	if (must("TIOCGPTN", ioctl(fd, TIOCGPTN, &number) < 0 ? -errno : 0) >= 0) {
		snprintf(expect, sizeof expect, "/dev/pts/%u", number);
		printf("%s: %s, path %s\n", method, isatty(fd) ? "terminal" : "no terminal", strcmp(path, expect) == 0 ? "is its own" : path);
	}
	printf("%s: close-on-exec %d, non-blocking %d\n", method, !!(fcntl(fd, F_GETFD) & FD_CLOEXEC), !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
	if (ret_fd)
		*ret_fd = fd;
	else
		close(fd);
finish:
	sd_bus_message_unref(reply);
	sd_bus_error_free(&error);
	return r;
}

/* read_shell prints what a shell writes until its terminal is closed. */
static void read_shell(int fd) {
	char buf[512];
	size_t len = 0;
	uint64_t until = now_ms() + 10000;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	while (len < sizeof buf - 1 && now_ms() < until) {
		ssize_t n = read(fd, buf + len, sizeof buf - 1 - len);
		if (n > 0) {
			len += (size_t)n;
			continue;
		}
		/* A terminal that nobody has open yet gives EIO as one that was closed. */
		if (n < 0 && errno == EIO && len > 0)
			break;
		usleep(1000);
	}
	buf[len] = 0;
	for (char *save, *line = strtok_r(buf, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save))
		printf("shell: %s\n", line);
}

static void root_directory(sd_bus *bus, const char *name, pid_t pid) {
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	int fd;
	if (sd_bus_call_method(bus, NAME, PATH, MANAGER, "OpenMachineRootDirectory", &error, &reply, "s", name) < 0) {
		printf("root directory of %s: %s\n", name, error.name);
		failed |= sd_bus_error_has_name(&error, SD_BUS_ERROR_NOT_SUPPORTED) == 0;
	} else if (must("read root directory", sd_bus_message_read(reply, "h", &fd)) >= 0) {
		struct stat a, b;
		char path[64], text[256] = "";
		snprintf(path, sizeof path, "/proc/%d/root", pid);
		int same = fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino;
		int mode = fcntl(fd, F_GETFL) & (O_ACCMODE | O_PATH | O_DIRECTORY);
		int file = openat(fd, "etc/os-release", O_RDONLY);
		if (file >= 0 && read(file, text, sizeof text - 1) > 0)
			text[strcspn(text, "\n")] = 0;
		printf("root directory of %s: %s, flags %s, os-release '%s'\n", name, same ? "is the leader's" : "another", mode == (O_RDONLY | O_DIRECTORY) ? "read directory" : "others", text);
		close(file);
	}
	sd_bus_message_unref(reply);
	sd_bus_error_free(&error);
}

static int changed(sd_bus_message *m, void *unused, sd_bus_error *error) {
	(void)m, (void)unused, (void)error;
	printf("PropertiesChanged\n");
	return 0;
}

static int is_new, is_made, is_gone;
static uint64_t gone_at;

static int signalled(sd_bus_message *m, void *new, sd_bus_error *error) {
	const char *name, *path;
	(void)error;
	if (must("read signal", sd_bus_message_read(m, "so", &name, &path)) < 0 || strcmp(name, new) != 0)
		return 0;
	printf("%s %s %s\n", sd_bus_message_get_member(m), name, path);
	if (strcmp(sd_bus_message_get_member(m), "MachineNew") == 0) {
		is_new = 1;
		class_of(name);
	} else {
		is_gone = 1, gone_at = now_ms();
		class_of(name);
	}
	return 0;
}

static int made(sd_bus_message *m, void *new, sd_bus_error *error) {
	const char *path;
	(void)error;
	is_made = 1;
	if (sd_bus_message_is_method_error(m, NULL)) {
		printf("FAILED CreateMachine: %s\n", sd_bus_message_get_error(m)->message);
		failed = 1;
		return 0;
	}
	if (must("read path", sd_bus_message_read(m, "o", &path)) >= 0)
		printf("CreateMachine %s: %s, %s\n", (char *)new, path, is_new ? "after MachineNew" : "before MachineNew");
	return 0;
}

static void process_until(sd_bus *bus, int *flag, uint64_t ms) {
	for (uint64_t until = now_ms() + ms; !*flag && now_ms() < until;) {
		int r = sd_bus_process(bus, NULL);
		if (must("sd_bus_process", r) < 0)
			return;
		if (r == 0)
			sd_bus_wait(bus, 100000);
	}
}

static void life(sd_bus *bus, const char *new) {
	sd_login_monitor *monitor = NULL;
	must("monitor", sd_login_monitor_new("machine", &monitor));
	must("match", sd_bus_match_signal(bus, NULL, NAME, PATH, MANAGER, "MachineNew", signalled, (void *)new));
	must("match", sd_bus_match_signal(bus, NULL, NAME, PATH, MANAGER, "MachineRemoved", signalled, (void *)new));
	must("match", sd_bus_match_signal(bus, NULL, NAME, NULL, "org.freedesktop.DBus.Properties", "PropertiesChanged", changed, NULL));
	pid_t child = fork();
	if (child == 0) {
		for (;;)
			pause();
	}
	uint8_t id[16] = {1, 2, 3};
	sd_bus_message *m = NULL;
	must("new call", sd_bus_message_new_method_call(bus, &m, NAME, PATH, MANAGER, "CreateMachine"));
	must("append", sd_bus_message_append(m, "s", new));
	must("append", sd_bus_message_append_array(m, 'y', id, sizeof id));
	must("append", sd_bus_message_append(m, "ssusa(sv)", "sdclient", "container", (uint32_t)child, "/", 1, "Description", "s", "of a test"));
	must("call", sd_bus_call_async(bus, NULL, m, made, (void *)new, 0));
	sd_bus_message_unref(m);
	process_until(bus, &is_made, 10000);
	wait_monitor("creation", monitor);
	machine_of("the child", child);
	ifindices_of(new);
	names();
	uint64_t killed_at = now_ms();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	process_until(bus, &is_gone, 10000);
	printf("end noticed: %s\n", !is_gone ? "never" : gone_at - killed_at <= 100 ? "in 100 ms" : "late");
	wait_monitor("end", monitor);
	class_of(new);
	names();
	sd_login_monitor_unref(monitor);
}

int main(int argc, char **argv) {
	sd_bus *bus = NULL;
	int shell = -1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc != 3)
		return 2;
	const char *name = argv[1];
	if (must("sd_bus_open_system", sd_bus_open_system(&bus)) < 0)
		return 1;
	pid_t pid = (pid_t)leader(bus, name);
	names();
	class_of(name), class_of(".host"), class_of("nope"), class_of("../x"), class_of("");
	ifindices_of(name), ifindices_of(".host"), ifindices_of("nope");
	machine_of("the leader", pid), machine_of("PID 1", 1), machine_of("ourselves", 0);
	terminal(bus, "OpenMachinePTY", name, NULL);
	if (terminal(bus, "OpenMachineShell", name, &shell) >= 0)
		read_shell(shell);
	/* Last, since a getty comes back to the number that another terminal may have by then. */
	terminal(bus, "OpenMachineLogin", name, NULL);
	terminal(bus, "OpenMachinePTY", ".host", NULL);
	terminal(bus, "OpenMachinePTY", "nope", NULL);
	root_directory(bus, name, pid);
	root_directory(bus, ".host", getpid());
	life(bus, argv[2]);
	sd_bus_flush_close_unref(bus);
	printf("end\n");
	return failed;
}
