"""A caller without manners. flood.py KIND: bus, varlink, fds, names.

It sends as fast as it is let, reads no reply, and ends after some seconds.
"""
import array
import os
import socket
import struct
import sys
import time

SECONDS = 4
BUS = "/run/dbus/system_bus_socket"
VARLINK = "/run/systemd/machine/io.systemd.Machine"
NAMES = "/run/systemd/machine/nss"


def connect(path, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_UNIX, kind)
    s.settimeout(1)
    s.connect(path)
    return s


def string(s, pad=4):
    b = s.encode()
    return struct.pack("<I", len(b)) + b + b"\0"


def align(b, n):
    return b + b"\0" * (-len(b) % n)


def message(serial, member, signature="", body=b"", destination="org.freedesktop.machine1",
            path="/org/freedesktop/machine1", interface="org.freedesktop.machine1.Manager", fds=0):
    fields = b""
    for code, kind, value in ((1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", destination), (8, "g", signature)):
        if value == "":
            continue
        fields = align(fields, 8) + bytes([code, 1]) + kind.encode() + b"\0"
        if kind == "g":
            fields += bytes([len(value)]) + value.encode() + b"\0"
        else:
            fields = align(fields, 4) + string(value)
    if fds:
        fields = align(fields, 8) + bytes([9, 1]) + b"u\0" + struct.pack("<I", fds)
    head = b"l\x01\x00\x01" + struct.pack("<III", len(body), serial, len(fields)) + fields
    return align(head, 8) + body


def bus():
    s = connect(BUS)
    s.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    s.recv(200)
    s.sendall(b"NEGOTIATE_UNIX_FD\r\n")
    s.recv(200)
    s.sendall(b"BEGIN\r\n" + message(1, "Hello", destination="org.freedesktop.DBus", path="/org/freedesktop/DBus", interface="org.freedesktop.DBus"))
    s.recv(4096)
    return s


def shell(size):
    """The body of an OpenMachineShell with one long argument."""
    body = align(align(align(string("bb"), 4) + string("root"), 4) + string("/bin/sh"), 4)
    words = string("x" * size)
    body += struct.pack("<I", len(words)) + words
    return align(body, 4) + struct.pack("<I", 0)


def flood(senders):
    """Sends on all connections in turn, until the time is over."""
    end = time.time() + SECONDS
    sent = 0
    while time.time() < end and senders:
        for s, data in list(senders):
            s.settimeout(0.01)
            try:
                s.sendall(data)
                sent += 1
            except OSError:
                if time.time() > end:
                    break
                if s.fileno() < 0:
                    senders.remove((s, data))
    print("sent", sent)


def many(make, n):
    out = []
    for _ in range(n):
        try:
            out.append(make())
        except OSError:
            break
    return out


kind = sys.argv[1]
if kind == "bus":
    lists = message(2, "ListMachines")
    lookups = message(2, "GetMachineByPID", "u", struct.pack("<I", 1))
    long = message(2, "OpenMachineShell", "sssasas", shell(1 << 20))
    release = message(2, "GetMachineOSRelease", "s", string("bb"))
    calls = [lists, lookups, long, release]
    flood([(s, calls[i % len(calls)]) for i, s in enumerate(many(bus, 100))])
elif kind == "varlink":
    def call(method, parameters="{}", more=True):
        return ('{"method":"io.systemd.Machine.%s","parameters":%s%s}' % (method, parameters, ',"more":true' if more else "")).encode() + b"\0"
    calls = [
        call("List", '{"acquireMetadata":"yes"}'),
        call("Open", '{"name":"bb","mode":"shell","args":["%s"],"path":"/bin/sh"}' % ("x" * 900000), False),
        b'{"method":"' + b"x" * (1 << 20),
        call("List", '{"name":"bb"}', False),
    ]
    socks = many(lambda: connect(VARLINK), 300)
    print("connected", len(socks))
    flood([(s, calls[i % len(calls)]) for i, s in enumerate(socks)])
elif kind == "fds":
    null = os.open("/dev/null", os.O_RDONLY)
    end = time.time() + SECONDS
    sent = 0
    stream = b'{"method":"org.varlink.service.GetInfo"}\0'
    question = struct.pack("<BBBBI", 1, 1, 0, 2, 0) + b"bb"
    socks = [(connect(VARLINK), stream, 250), (bus(), message(2, "ListMachines", fds=16), 16), (bus(), message(2, "GetMachineByPID", "h", struct.pack("<I", 0), fds=1), 1)]
    while time.time() < end:
        socks.append((connect(NAMES, socket.SOCK_SEQPACKET), question, 250))
        for s, data, n in list(socks):
            s.settimeout(0.01)
            try:
                s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * n))])
                sent += 1
            except OSError:
                socks.remove((s, data, n))
        socks = socks[-100:]
    print("sent", sent)
elif kind == "names":
    socks = many(lambda: connect(NAMES, socket.SOCK_SEQPACKET), 600)
    print("connected", len(socks))
    time.sleep(SECONDS)
