"""Errors of ours are two clear lines and an exit code of their own; others keep their traceback."""

from __future__ import annotations

import pickle

import pytest

from pipeline import errors
from pipeline.errors import CrawlToChatError


def kinds() -> list[type[CrawlToChatError]]:
    return CrawlToChatError.__subclasses__()


@pytest.mark.parametrize("kind", kinds())
def test_two_lines_and_a_code(kind: type[CrawlToChatError], capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise kind("a.yaml:3: broken", "mend it")

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == kind.exit_code != 0
    assert capsys.readouterr().err == "error: a.yaml:3: broken\n  -> mend it\n"


def test_codes_tell_kinds_apart() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len(set(codes)) == len(codes)


def test_success_is_zero() -> None:
    with pytest.raises(SystemExit) as caught:
        errors.run(lambda: None)
    assert caught.value.code == 0


def test_others_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        errors.run(lambda: print(1 // 0))


@pytest.mark.parametrize("kind", kinds())
def test_they_cross_processes(kind: type[CrawlToChatError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what", "remedy")))
    assert type(again) is kind and (again.what, again.remedy) == ("what", "remedy")
