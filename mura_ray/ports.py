"""Free ports of this machine, for servers that are told theirs before they listen."""

import random
import socket

PORTS = range(20_000, 32_768)
"""Between those of Ray's workers and those that Linux gives to connections: from the latter's, which asking for port 0
draws from, any process on the machine may take the port before the server listens there."""


def free_port() -> int:
    """A port on which nothing listens on loopback."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that a server has just left is free
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")
