"""Which addresses may be asked: public ones by http and https, checked after the name is resolved.

A list may come from a stranger, and a host may redirect to anything. So every address, also that of
a redirect, is read once, its name resolved by us, all that it resolves to is checked, and the
connection goes to the address that was checked: a second answer of the name server cannot matter.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from data_pipeline.collect.download.outcomes import Failed, Refused

PORTS = {"http": 80, "https": 443}
# Of IANA's special-purpose registries, what not every version of Python counts as such.
SPECIAL = [*map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20"))]
GLOBAL_V6 = ipaddress.ip_network("2000::/3")  # all IPv6 addresses of the public network are in it
# A cloud's metadata server whose address looks public.
METADATA = ipaddress.ip_address("168.63.129.16")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are the IPv4 address behind it
SAFE = "!#$%&'()*+,/:;=?@[]~"  # characters that stay as they are in a path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """An address that may be resolved: ``origin`` is what limits and robots.txt belong to."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def url(self) -> str:
        return self.origin + self.path


def read_target(url: str, allow: tuple[str, ...] = (), base: str = "") -> Target:
    """What a URL names.

    Args:
        allow: "host:port" that may have any port. base: the URL that this one is relative to.

    Raises:
        Refused: another scheme or port, or credentials in it.
        Failed: it cannot be read.
    """
    try:
        parts = urlsplit(urljoin(base, url.strip()) if base else url.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise Failed("url", str(error)) from error
    if scheme not in PORTS:
        raise Refused("scheme", scheme or "none", "http, https")
    if "@" in parts.netloc:
        raise Refused("credentials")
    if not host or "\\" in parts.netloc or "%" in host or any(c.isspace() for c in host):
        raise Failed("url", "no host that can be read")
    try:
        host = host if ":" in host else host.encode("idna").decode().rstrip(".").lower()
    except UnicodeError as error:
        raise Failed("url", "the host is no name") from error
    path = quote(parts.path or "/", safe=SAFE)
    path += f"?{quote(parts.query, safe=SAFE)}" if parts.query else ""
    target = Target(scheme, host, PORTS[scheme] if port is None else port, path)
    if target.port not in PORTS.values() and _place(host, target.port) not in allow:
        raise Refused("port", target.port, "80, 443")
    return target


def redirected(target: Target, location: str, allow: tuple[str, ...] = ()) -> Target:
    """Where a redirect leads, checked like any other; raises as ``read_target`` does."""
    return read_target(location, allow, target.url)


def resolve(
    target: Target, allow: tuple[str, ...], timeout: float, resolver: Resolver | None = None
) -> list[str]:
    """The addresses of the target's host, of which every one may be asked.

    Args:
        timeout: seconds. resolver: (host, port) -> addresses; by default the system's.

    Raises:
        Refused: one of them is not public.
        Failed: the name is unknown, or its server does not answer.
    """
    found = _in_time(resolver or system_addresses, target, timeout)
    for text in found:
        if forbidden(text) and _place(text, target.port) not in allow:
            raise Refused("address", text, "public addresses")
        # A name that resolves to an allowed address is not what was allowed.
        if forbidden(text) and text != target.host:
            raise Refused("address", text, "public addresses")
    return found


def forbidden(text: str) -> bool:
    """Whether an IP address is private, local, reserved, a multicast's or metadata's."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address not in GLOBAL_V6 or address.sixtofour is not None:
            return True  # 6to4 is a tunnel to any IPv4 address
    return (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address == METADATA
        or any(address in network for network in SPECIAL)
    )


def system_addresses(host: str, port: int) -> list[str]:
    """What the system resolves a name to, in its order. OSError if it cannot."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _in_time(resolver: Resolver, target: Target, timeout: float) -> list[str]:
    """The resolver's answer; the system's has no time-out of its own, so a thread waits for it."""
    answer: list[list[str]] = []
    fault: list[Exception] = []

    def ask() -> None:
        try:
            answer.append(resolver(target.host, target.port))
        except (OSError, UnicodeError) as error:
            fault.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="resolve")
    thread.start()
    thread.join(timeout)
    if fault:
        said = getattr(fault[0], "strerror", None) or str(fault[0])
        raise Failed("dns", said, again=True)
    if not answer:
        raise Failed("dns", "no answer", timeout, again=True)
    if not answer[0]:
        raise Failed("dns", "no address", again=True)
    return answer[0]


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
