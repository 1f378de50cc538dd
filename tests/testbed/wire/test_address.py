"""HOST:PORT: one rule in options, in the file and in code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError
from testbed.cli.app import app
from testbed.deploy.device_file import parse_device_file
from testbed.link.emulator import LinkEmulator
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.traces.trace import constant_trace
from testbed.wire.address import join_address, parse_address, parse_host
from testbed.wire.client import MecClient

GOOD = [
    ("mec.example:8001", "mec.example", 8001),
    ("edge_1:65535", "edge_1", 65535),
    ("192.0.2.7:1", "192.0.2.7", 1),
    ("[2001:db8::7]:443", "2001:db8::7", 443),
    ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
]
BAD = [
    ("https://mec.example:8001", "write mec.example:8001 alone"),
    ("grpcs://mec.example:8001/v2", "write mec.example:8001 alone"),
    ("dns:///mec.example:8001", "write mec.example:8001 alone"),
    ("dns:mec.example:8001", "write mec.example:8001 alone"),
    ("ipv4:192.0.2.7:8001", "write 192.0.2.7:8001 alone"),
    ("unix:/run/mec.sock", "unix: before it"),
    ("/run/mec.sock", "a path"),
    ("mec.example:8001/v2", "a path"),
    ("mec.example:8001,mec2.example:8001", "more than one address"),
    ("mec.example:8001;mec2.example:8001", "more than one address"),
    ("2001:db8::7:8001", "write [2001:db8::7]:8001"),
    ("2001:db8:1:2:3:4:5:6:8001", "write [2001:db8:1:2:3:4:5:6]:8001"),
    ("::", "write [::]:8001"),
    ("[2001:db8::7]", "no port"),
    ("[2001:db8::7]8001", "brackets"),
    ("[192.0.2.7]:8001", "no host name"),
    ("mec.example", "no port"),
    ("", "no port"),
    (":8001", "no host"),
    ("mec.example:", "port ''"),
    ("mec.example:http", "port 'http'"),
    ("mec.example:0", "port '0'"),
    ("mec.example:65536", "port '65536'"),
    ("mec.example:99999", "port '99999'"),
    ("mec.example:-1", "port '-1'"),
    ("mec.example:+1", "port '+1'"),
    ("mec.example:8_001", "port '8_001'"),
    ("mec.example:\u0668\u0660\u0660\u0661", "port"),  # int() would read it as 8001
    ("mec.example: 8001", "space"),
    (" mec.example:8001", "space"),
    ("mec.example:8001\n", "space or control"),
    ("mec.ex\u200bample:8001", "control"),
    ("mec..example:8001", "no host name"),
    ("-mec:8001", "no host name"),
    ("me@mec.example:8001", "no host name"),
    ("m\u00e9c.example:8001", "no host name"),
    ("256.0.2.7:8001", "no IPv4 address"),
    ("192.2.7:8001", "no IPv4 address"),
    ("0x7f.1:8001", "no IPv4 address"),
    ("a" * 64 + ":8001", "no host name"),
]


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_what_is_an_address(text: str, host: str, port: int) -> None:
    assert parse_address(text, "--server") == (host, port)
    assert join_address(host, port) == text
    assert parse_host(host, "--host") == host
    assert parse_device_file(f'[bundles]\naction = "e5s2"\n[server]\naddress = "{text}"')


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_none_is_refused_the_same_everywhere(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as by_option:
        parse_address(text, "--server")
    with pytest.raises(ConfigError) as by_code:
        MecClient(text, "0" * 64)
    quoted = text.replace("\n", "\\n")
    with pytest.raises(ConfigError) as by_file:
        parse_device_file(f'[bundles]\naction = "e5s2"\n[server]\naddress = "{quoted}"')
    for caught in (by_option, by_code, by_file):
        assert said in str(caught.value)
        assert "HOST:PORT" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@given(st.text(max_size=30))
def test_whatever_passes_is_one_host_and_one_port(text: str) -> None:
    try:
        host, port = parse_address(text, "x", listen=True)
    except ConfigError:
        return
    assert text.endswith(f":{text.rpartition(':')[2]}")
    assert 0 <= port == int(text.rpartition(":")[2]) <= 65535
    assert join_address(host, port).startswith(text.rpartition(":")[0] + ":")


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_passes(address: object, port: int) -> None:
    text = join_address(str(address), port)
    assert parse_address(text, "x") == (str(address), port)


def test_a_port_to_listen_on_may_be_any_free_one() -> None:
    assert parse_address("127.0.0.1:0", "--listen", listen=True) == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("localhost:80", "write localhost"),
        ("http://localhost", "write localhost alone"),
        ("[::1]:80", "no host name"),
        ("::1,::2", "more than one"),
        ("", "no host"),
        ("*", "no host name"),
    ],
)
def test_a_host_to_listen_on_has_no_port(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerConfig(host=text)
    with pytest.raises(ConfigError, match=said):
        parse_device_file(f'[bundles]\naction = "e5s2"\n[metrics]\nhost = "{text}"')


@pytest.mark.parametrize("options", [{"port": 65536}, {"port": -1}, {"metrics_port": 70_000}])
def test_a_servers_ports_are_ports(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"expected 0\.\.65535"):
        ServerConfig(**options)  # type: ignore[arg-type]


def test_a_links_server_port_is_a_port() -> None:
    """The system's resolver takes 99999 for 34463."""
    with pytest.raises(ConfigError, match=r"99999; expected 0\.\.65535"):
        LinkEmulator(constant_trace(1, 1), ("127.0.0.1", 99999))


@pytest.mark.parametrize(
    "command",
    [
        ["device", "--server", "localhost:99999", "--action", "e3s2"],
        ["link", "--server", "localhost:99999", "--rate-mbps", "5"],
        ["link", "--server", "localhost:8001", "--listen", "::1:0", "--rate-mbps", "5"],
        ["serve", "--host", "localhost:8001"],
    ],
    ids=lambda command: " ".join(command[:4]),
)
def test_commands_refuse_it(command: list[str]) -> None:
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, ConfigError)
    assert any(repr(word) in str(error) for word in command)


def test_check_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text('[bundles]\naction = "e5s2"\n[server]\naddress = "http://mec.example:8001"\n')
    error = CliRunner().invoke(app, ["device", "--config", str(path), "--check"]).exception
    assert isinstance(error, ConfigError)
    assert "write mec.example:8001 alone" in str(error)


def test_ipv6_from_end_to_end() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    bundle = load_bundle()
    with (
        MecServer(bundle, ServerConfig(host="[::1]", metrics_port=0)) as server,
        LinkEmulator(constant_trace(50, 1), parse_address(server.address, "x"), ("::1", 0)) as link,
        MecClient(join_address(link.host, link.port), bundle.hash) as client,
    ):
        assert server.address == f"[::1]:{server.port}"
        client.connect(20)
        assert client.probe(20_000) > 0
