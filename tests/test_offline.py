"""tools/offline.py really cuts the network, keeps loopback, and hands on the exit code."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

OFFLINE = Path(__file__).resolve().parent.parent / "tools" / "offline.py"
spec = importlib.util.spec_from_file_location("tools_offline", OFFLINE)
offline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(offline)

cut_possible = pytest.mark.skipif(
    offline.why_not() is not None, reason=f"the network cannot be cut here: {offline.why_not()}"
)


def run(*command):
    return subprocess.run(
        [sys.executable, str(OFFLINE), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@cut_possible
def test_the_network_is_cut_at_once():
    # An address for documentation (RFC 5737): with a network, the attempt would hang, not fail.
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=20)"
    start = time.monotonic()
    result = run(sys.executable, "-c", code)
    assert result.returncode == 1 and "Network is unreachable" in result.stderr, result.stderr
    assert time.monotonic() - start < 10


@cut_possible
def test_only_loopback_is_left():
    result = run(
        sys.executable, "-c", "import socket; print([name for _, name in socket.if_nameindex()])"
    )
    assert result.stdout.strip() == "['lo']"


@cut_possible
def test_loopback_works():
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
server.accept()[0].sendall(b"hello")
print(client.recv(5).decode())
"""
    assert run(sys.executable, "-c", code).stdout.strip() == "hello"


def test_the_exit_code_is_the_commands():
    assert run(sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    assert run().returncode != 0
    missing = run("no-such-command-here")
    assert missing.returncode != 0 and "cannot run no-such-command-here" in missing.stderr


def test_where_it_cannot_be_cut_it_says_so_and_runs():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("offline", {str(OFFLINE)!r})
offline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(offline)
def refused(flags):
    raise PermissionError(1, "Operation not permitted")
offline.unshare = refused
offline.main([sys.executable, "-c", "print('ran')"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "ran" and result.returncode == 0
    assert len(result.stderr.splitlines()) == 1 and "network stays on" in result.stderr
