"""Which addresses may be asked."""

import pytest

from data_pipeline.collect.download.network.addresses import (
    forbidden,
    read_target,
    redirected,
    resolve,
)
from data_pipeline.collect.download.outcomes import Failed, NotFetched, Refused


@pytest.mark.parametrize(
    "url, reason",
    [
        ("file:///etc/passwd", "scheme"),
        ("ftp://example.org/a.jpg", "scheme"),
        ("data:image/png;base64,AAAA", "scheme"),
        ("//example.org/a.jpg", "scheme"),
        ("a.jpg", "scheme"),
        ("http://user:password@example.org/", "credentials"),
        ("http://user@example.org/", "credentials"),
        ("http://example.org@127.0.0.1/", "credentials"),
        ("http://example.org:22/", "port"),
        ("http://example.org:0/", "port"),
        ("http://example.org:99999/", "url"),
        ("http:///a.jpg", "url"),
        ("http://exa mple.org/", "url"),
        ("http://127.0.0.1\\@example.org/", "credentials"),
        ("http://127.0.0.1\\.example.org/", "url"),
        ("http://[::1", "url"),
        ("http://[fe80::1%25eth0]/", "url"),
        (f"http://{'a' * 64}.org/", "url"),
    ],
)
def test_addresses_that_are_not_asked(url, reason):
    with pytest.raises(NotFetched) as caught:
        read_target(url)
    assert caught.value.reason == reason


def test_what_a_url_names():
    target = read_target(" HTTPS://Bücher.Example:443/a b/ü.jpg?q=ä&r=%20#part ")
    assert target.origin == "https://xn--bcher-kva.example"
    assert target.path == "/a%20b/%C3%BC.jpg?q=%C3%A4&r=%20"
    assert redirected(target, "../c.jpg").url == "https://xn--bcher-kva.example/c.jpg"
    assert redirected(target, "//other.org").url == "https://other.org/"
    with pytest.raises(Refused, match="scheme file"):
        redirected(target, "file:///etc/passwd")


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.5.5 192.168.1.1 169.254.169.254 "
    "100.64.0.1 100.100.100.200 168.63.129.16 192.0.0.192 192.88.99.1 198.18.0.1 "
    "224.0.0.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 "
    "fd00:ec2::254 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2001:0:1::1 4000::1 3fff::1 "
    "100::1 5f00::1".split(),
)
def test_forbidden(address):
    assert forbidden(address)


@pytest.mark.parametrize(
    "address",
    "8.8.8.8 93.184.216.34 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split(),
)
def test_public(address):
    assert not forbidden(address)


def test_every_address_of_a_name_is_checked():
    target = read_target("http://example.org/")
    given = ["8.8.8.8", "2606:4700::1111"]
    assert resolve(target, (), 1, lambda host, port: given) == given
    for bad in ("127.0.0.1", "::ffff:10.0.0.1"):
        with pytest.raises(Refused, match=f"address {bad}"):
            resolve(target, (), 1, lambda host, port, bad=bad: ["8.8.8.8", bad])


def test_a_local_server_is_allowed_by_its_number_and_port_only():
    allow = ("127.0.0.1:8123",)
    target = read_target("http://127.0.0.1:8123/a.jpg", allow)
    assert resolve(target, allow, 1) == ["127.0.0.1"]
    for url in ("http://127.0.0.1:8124/", "http://127.0.0.2:8123/", "http://localhost:8123/"):
        with pytest.raises(Refused, match="port"):
            read_target(url, allow)
    # A name that leads there was not allowed, however its address is written.
    for url in ("http://127.0.0.1/", "http://2130706433/", "http://127.1/", "http://0x7f.0.0.1/"):
        with pytest.raises(Refused, match="address 127.0.0.1"):
            resolve(read_target(url, allow), allow, 5)
    sneaky = read_target("http://example.org/", allow)
    with pytest.raises(Refused, match="address"):
        resolve(sneaky, ("127.0.0.1:80",), 1, lambda host, port: ["127.0.0.1"])


def test_a_name_server_that_does_not_answer():
    import threading

    never, target = threading.Event(), read_target("http://example.org/")
    with pytest.raises(Failed, match="dns no answer") as caught:
        resolve(target, (), 0.05, lambda host, port: never.wait(5) and [])
    assert caught.value.again
    never.set()

    def unknown(host, port):
        raise OSError(-2, "Name or service not known")

    with pytest.raises(Failed, match="dns Name or service not known"):
        resolve(target, (), 1, unknown)
