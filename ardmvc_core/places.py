"""Paths and addresses as people write them."""

import os
from string import Template


def expanded(place: str) -> str:
    """A path or an address with `~`, `~user`, `$NAME` and `${NAME}` replaced; replaced again, it stays what it is.

    Raises: ValueError that names the place, if it is empty, names what has no value here, or a `$` would be left.
    """
    if not place:
        raise ValueError("must name a place, got ''")
    try:
        # An empty value would make an absolute path of `$NAME/folder`.
        text = Template(place).substitute({name: value for name, value in os.environ.items() if value})
    except KeyError as error:
        raise ValueError(f"{place!r}: the variable ${error.args[0]} is not set") from None
    except ValueError:
        text = "$"
    if "$" in text:
        raise ValueError(f"{place!r}: a `$` must begin a variable such as $HOME, and cannot be part of a name")
    if text.startswith("~"):
        text = os.path.expanduser(text)
    if text.startswith("~"):
        raise ValueError(f"{place!r}: {text.partition('/')[0]} has no home folder here; a name may begin with ./~")
    return text
