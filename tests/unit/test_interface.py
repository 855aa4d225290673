import pytest

from mura_ray.distributed import interface


def test_an_address_of_this_machine_names_its_interface() -> None:
    assert interface.interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_machine_names_none() -> None:
    assert interface.interface_of("203.0.113.7") == ""


def test_gradients_go_over_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(interface.GLOO_INTERFACE, raising=False)
    assert interface.gloo_interface("127.0.0.1") == "lo"


def test_what_the_user_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interface.GLOO_INTERFACE, "ib0")
    assert interface.gloo_interface("127.0.0.1") == "ib0"
