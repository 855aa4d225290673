"""Which addresses reach this machine alone, and which are every interface's."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it; a name other than localhost counts as another machine's."""
    return host == "localhost" or _is(host, "is_loopback")


def is_everywhere(host: str) -> bool:
    """Whether it stands for all interfaces, so that nobody can connect to it by this name."""
    return _is(host, "is_unspecified")


def _is(host: str, what: str) -> bool:
    try:
        return getattr(ipaddress.ip_address(host), what)
    except ValueError:
        return False
