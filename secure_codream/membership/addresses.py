"""The server's address as a roster has it: one that every client can connect to, checked before a key is made."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

from secure_codream.configuration.reading import ConfigError

_PARTS = re.compile(r"tcp://(?P<host>\[[^\[\]\s]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", re.ASCII)


def require_address(address: str) -> str:
    """The address, if it is tcp://HOST:PORT: a name, an IPv4 address or an IPv6 one in brackets, and a port.

    Raises:
        ConfigError: it is not, or nobody could connect to it.
    """
    parts = _PARTS.fullmatch(address)
    if parts is None:
        raise ConfigError(
            f"address: found {address!r}; tcp://HOST:PORT is needed, such as tcp://aggregator.example:7447 or "
            "tcp://[2001:db8::1]:7447"
        )
    host, port = parts["host"], int(parts["port"])
    if not 1 <= port <= 65_535:
        raise ConfigError(f"address: found port {parts['port']}; 1 to 65535 is allowed")
    if not (_is_ipv6(host[1:-1]) if host.startswith("[") else _NAME.fullmatch(host)):
        raise ConfigError(
            f"address: found host {host!r}; a name or an address that clients can connect to is needed; where the "
            "server binds is the option --listen of `server`"
        )
    return address


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
