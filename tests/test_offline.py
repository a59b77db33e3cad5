"""tools/offline.py really cuts the network, keeps loopback, and hands on the exit code."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import offline

WHY_NOT = offline.why_not()
cut_possible = pytest.mark.skipif(WHY_NOT is not None, reason=f"it cannot be cut: {WHY_NOT}")


def run(*command):
    whole = [sys.executable, str(ROOT / "tools" / "offline.py"), *command]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60)


@cut_possible
def test_the_network_is_cut_at_once():
    # An address for documentation (RFC 5737): with a network the attempt would hang and not fail.
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=20)"
    start = time.monotonic()
    result = run(sys.executable, "-c", code)
    assert result.returncode == 1 and "Network is unreachable" in result.stderr, result.stderr
    assert time.monotonic() - start < 10


@cut_possible
def test_loopback_alone_is_left_and_works():
    code = """
import socket
print([name for _, name in socket.if_nameindex()])
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
server.accept()[0].sendall(b"hello")
print(client.recv(5).decode())
"""
    assert run(sys.executable, "-c", code).stdout == "['lo']\nhello\n"


def test_the_exit_code_is_the_commands():
    assert run(sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    missing = run("no-such-command-here")
    assert missing.returncode != 0 and "cannot run no-such-command-here" in missing.stderr


def test_where_it_cannot_be_cut_it_says_so_and_runs(monkeypatch):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import offline
def refused(flags):
    raise PermissionError(1, "Operation not permitted")
offline.unshare = refused
offline.main([sys.executable, "-c", "print('ran')"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "ran" and result.returncode == 0
    assert len(result.stderr.splitlines()) == 1 and "network stays on" in result.stderr
