import pytest

from mura_ray import cli


def fails() -> None:
    raise ValueError("no such thing: pass another")


def test_exit_codes_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert cli.run(lambda: None) == 0
    assert cli.run(lambda: 3) == 3
    assert cli.run(fails) == 1
    assert capsys.readouterr().err == "error: no such thing: pass another\n"
    assert cli.run(interrupted) == cli.INTERRUPTED


def test_a_bug_is_not_dressed_up_as_a_user_s_mistake() -> None:
    with pytest.raises(KeyError):
        cli.run(lambda: {}["missing"])


def test_a_location_that_is_not_given_says_how_to_give_it() -> None:
    assert cli.location("/data/shards", "data") == "/data/shards"
    with pytest.raises(ValueError, match="pass --data URI or set MURA_DATA"):
        cli.location(None, "data")
