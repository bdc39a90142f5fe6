"""How the processes of several machines find each other: the master's address, and the interface that leads to it."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

from rnnlm.training.config import ConfigError

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def is_loopback(host: str) -> bool:
    """Return whether `host` means this machine itself. A name that cannot be resolved does not."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def address_towards(host: str) -> str:
    """Return this machine's own address on the route to `host`. Raises OSError. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as route:
        route.connect(address)
        return str(route.getsockname()[0]).partition("%")[0]


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has `address`, or None where it cannot be found out (not on Linux)."""
    try:
        import fcntl
    except ImportError:
        return None
    if ":" in address:
        return _interface_of_ipv6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                request = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(request[20:24]) == address:
                return name
    return None


def _interface_of_ipv6(address: str) -> str | None:
    wanted = ipaddress.ip_address(address).packed.hex()
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            return next((line.split()[-1] for line in table if line.startswith(wanted)), None)
    except OSError:
        return None


def check_master(host: str, machine: int) -> None:
    """Refuse, on all machines but the first, a master address that leads a machine to itself.

    torchrun with c10d sends the first machine's own name, which often resolves to the loopback address everywhere.
    machine: the number of this machine.  Raises ConfigError.
    """
    if machine > 0 and is_loopback(host):
        raise ConfigError(
            f"the first machine calls itself {host}, which is this machine here: start torchrun on the first one with "
            "--local-addr and the address by which the others reach it"
        )


def choose_interface(address: str) -> None:
    """Make gloo use the interface that has `address`, unless GLOO_SOCKET_IFNAME names one.

    By itself gloo takes what the machine's own name resolves to, on many machines the loopback.
    """
    name = None if os.environ.get("GLOO_SOCKET_IFNAME") else interface_of(address)
    if name:
        os.environ["GLOO_SOCKET_IFNAME"] = name
