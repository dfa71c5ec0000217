from pathlib import Path

import pytest

from ardmvc_core.data import DataError
from ardmvc_core.data.reading import fitted, megabytes, one_line, reading, reason_of, shown_path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is", "as it is"),
        ("two\n\tlines", "two lines"),
        ("\x1b[31m\u202e\ud800", r"\x1b[31m\u202e\ud800"),
        ("视图", "视图"),
        ("n" * 81, "n" * 77 + "…"),
        ("视" * 27, "视" * 25 + "…"),
        ("x" * 10**7, "x" * 77 + "…"),
    ],
)
def test_a_text_is_one_line_of_at_most_80_bytes(text: str, line: str) -> None:
    assert one_line(text) == line
    assert len(line.encode()) <= 80


def test_of_a_long_path_the_end_is_shown() -> None:
    assert shown_path(Path("/short/path.npz")) == "/short/path.npz"
    long = shown_path("/first" + "/folder" * 600 + "/own.npz")
    assert long.startswith("…")
    assert long.endswith("/folder/own.npz")
    assert len(long.encode()) == 300


def test_a_message_holds_what_fits_and_the_first_fault_always() -> None:
    assert fitted([]) == []
    assert fitted(["a", "b"]) == ["a", "b"]
    assert fitted(["f" * 700] * 5) == ["f" * 700, "f" * 700, "3 more faults like these"]
    assert fitted(["f" * 5000, "g"]) == ["f" * 5000, "1 more faults like these"]


def test_reasons() -> None:
    assert reason_of(ValueError("wrong")) == "wrong"
    assert reason_of(TypeError("wrong")) == "TypeError: wrong"
    assert reason_of(KeyError("name")) == "KeyError: 'name'"
    assert reason_of(ValueError("<ast.BinOp object at 0x7f4068fa3310>")) == "<ast.BinOp object>"
    assert reason_of(ValueError("wrong\n    For further information visit https://errors.io/x")) == "wrong"
    assert reason_of(MemoryError()) == "MemoryError"
    assert len(reason_of(ValueError("x" * 10**7)).encode()) == 240


def test_sizes() -> None:
    assert megabytes(3 << 19) == "1.5 MiB"
    assert megabytes(2**93 + 5) == "2^93 bytes"


class Refused(ValueError):
    """Another kind of error."""


def test_everything_that_is_raised_becomes_one_error() -> None:
    for error in (OSError("disk"), RecursionError("deep"), AssertionError(), KeyError("x"), SystemError("odd")):
        with pytest.raises(DataError, match=r"^own\.npz: cannot be read: ") as raised, reading("own.npz"):
            raise error
        assert raised.value.__cause__ is error
    with pytest.raises(Refused, match=r"^a: is damaged: no$"), reading("a", "is damaged", Refused):
        raise ValueError("no")
    with pytest.raises(MemoryError), reading("a", passing=(MemoryError,)):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), reading("a"):
        raise KeyboardInterrupt
