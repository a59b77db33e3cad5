"""Run a command with the network cut and the loopback interface up: `python tools/offline.py CMD
...`

Linux only: the command gets a network namespace of its own, without root where the system allows
it. Elsewhere one line says that the network stays on, and the command runs all the same.
"""

import ctypes
import os
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h


def unshare(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def cut():
    """Leave the machine's network for an empty one; raises OSError where that is not allowed."""
    import fcntl  # not on every system

    uid, gid = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWNET)  # enough for root
    except PermissionError:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    # Jupyter talks to its kernels over 127.0.0.1, which is down in a new namespace.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", request)[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def why_not():
    """None if the network can be cut, else the reason.

    Tried in a child: half a cut, with loopback down, cannot be undone.
    """
    if not sys.platform.startswith("linux"):
        return f"not possible on {sys.platform}"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cut()
        except BaseException as error:
            os.write(writer, str(error).encode() or b"unknown reason")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        reason = file.read().decode()
    os.waitpid(child, 0)
    return reason or None


def main(command):
    if not command:
        sys.exit("usage: python tools/offline.py CMD ...")
    reason = why_not()
    if reason is None:
        cut()
    else:
        print(
            f"offline.py: the network stays on, it cannot be cut here ({reason})",
            file=sys.stderr,
            flush=True,
        )
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"offline.py: cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
