import socket

import pytest

from mura_ray import ports


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
    assert ports.free_port() == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(OSError, match=f"no port is free from {port} to {port}"):
            ports.free_port()
