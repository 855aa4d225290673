import os

import pytest

from mura_ray.distributed import interface


def test_an_address_of_this_machine_names_its_interface() -> None:
    assert interface.interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_machine_names_none() -> None:
    assert interface.interface_of("203.0.113.7") is None


def test_gradients_go_over_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(interface.GLOO_INTERFACE, raising=False)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    interface.use_cluster_interface()
    assert os.environ.pop(interface.GLOO_INTERFACE) == "lo"


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interface.GLOO_INTERFACE, "ib0")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    interface.use_cluster_interface()
    assert os.environ[interface.GLOO_INTERFACE] == "ib0"
