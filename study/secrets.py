"""Nothing secret shows: addresses are a type that prints itself without its password, and texts lose what is secret.

Redaction knows the values: whenever an address is read, what is secret in it is remembered, and so is what variables
such as `MLFLOW_TRACKING_PASSWORD` hold. A remembered value is found however it is quoted, and wherever it stands.
Patterns are the second net, for addresses that nobody here has read.
"""

import base64
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import unquote, unquote_plus

STARS = "***"
LEAST = 3
"""Characters of a secret that is looked for everywhere. A shorter one would turn every message into stars: it is hidden
where addresses and fields show it."""
SHORT = 8
"""A secret with fewer letters and digits is only taken for one where no letter or digit is beside it."""

QUOTED = 8
"""Backslashes that a character of a secret may get from those who quote a quoted text."""

NAMES = re.compile(
    r"(?i)(?:PASSWORD|PASSWD|PASSPHRASE|MYSQL_PWD|ACCESS_KEY|ACCOUNT_KEY|API_KEY|SECRET_KEY|(?:^|_)(?:SECRET|TOKEN))$"
)
"""Variables of the environment that hold a secret."""
OPEN_FIELDS = {
    *("application_name", "charset", "client_encoding", "connect_timeout", "database", "dbname", "driver", "encrypt"),
    *("gssencmode", "host", "hostaddr", "keepalives", "mode", "port", "server", "service", "servicefile", "sslcert"),
    *("sslkey", "sslmode", "sslrootcert", "target_session_attrs", "timeout", "uid", "uri", "user", "username"),
}
"""Fields of a database's address that hold no secret; every other may."""
WORDS = {
    *("true", "false", "yes", "no", "on", "off", "none", "null", "data", "database", "db", "file", "host", "localhost"),
    *("http", "https", "jdbc", "mariadb", "mlflow", "mssql", "mysql", "oracle", "postgres", "postgresql", "psycopg"),
    *("sqlite", "password", "port", "runs", "server", "studies", "studies.db", "study", "url", "user", "username"),
}
"""What is no secret where an address or a variable only might hold one."""

_SCHEME = re.compile(r"(?:jdbc:)?[A-Za-z][\w+.-]*://")
_FILE = r"(?:sqlite(?:\+\w+)?|file):///(?![^@]*:[^@]*@)[^?]*"
"""A file's address, unless it looks like `user:password@` all the same."""
_LOCAL = re.compile(rf"{_FILE}|[\w./~ -]*")
"""What holds no secret: a file, a folder, or a word such as `databricks`."""
_HOST = r"(?:[\w.-]+|\[[\da-fA-F:.%]+\])?(?::\d+)?"
_PLAIN = re.compile(
    rf"(?:(?P<file>{_FILE})"
    # Up to the last `@`: in passwords they are written as they are more often than percent-encoded.
    rf"|(?P<scheme>{_SCHEME.pattern})(?:(?P<user>[\w.+%-]*)(?P<word>:[^/?#]*)?@)?"
    rf"(?P<place>{_HOST}(?:,{_HOST})*(?:/[\w./~ %+-]*)?))"
    r"(?P<rest>[?#;][^@]*)?"
)
"""An address that can be read in one way only, so that all of it but password and fields may be shown."""

_WITH_LOGIN = re.compile(r"[A-Za-z][\w+.-]{0,40}://[^:]*:.*@.*", re.DOTALL)
"""Schemes are bounded here and below: a long text without one would take time that grows with its length squared."""
_USER_INFO = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]{0,40}://)(?P<user>[^\s:@/'\"]*)(?P<rest>:?)[^\s'\"]*@")
_FIELD = re.compile(
    r"(?i)([?&](?:[\w-]*(?:password|passwd|secret|token|signature|access_?key)[\w-]*)=|\b(?:ssl)?(?:password|passwd|pwd)=)"
    r"[^&\s'\"]+"
)


@dataclass(frozen=True)
class _Secret:
    """A value that must not be shown, and how it is found."""

    core: str
    """Its longest run of letters and digits, which stands in every spelling."""
    pattern: re.Pattern[str]
    shown: str


_known: dict[str, _Secret] = {}
"""Longest first; replaced as a whole, so that it may be read while it grows."""
_growing = threading.Lock()


class Address:
    """Where a database or a server is. It prints itself without what is secret in it, and is neither pickled nor
    copied into JSON or YAML: only `reveal` gives it whole."""

    __slots__ = ("_shown", "_text")

    def __init__(self, address: "str | Address") -> None:
        self._text: str = address._text if isinstance(address, Address) else address
        self._shown = _show(self._text)
        remember_environment()
        _remember_address(self._text, self._shown)

    @property
    def kind(self) -> str:
        """What stands before `://`, such as `postgresql`, without a driver; empty for other texts."""
        scheme = _SCHEME.match(self._text)
        return scheme[0].removesuffix("://").partition("+")[0].lower() if scheme else ""

    def reveal(self) -> str:
        """The address whole, for the library that connects to it."""
        return self._text

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Address({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an address does not leave its process")


def _show(text: str) -> str:
    if _LOCAL.fullmatch(text):
        return text
    plain, scheme = _PLAIN.fullmatch(text), _SCHEME.match(text)
    if plain is None:
        return f"{scheme[0] if scheme else ''}{STARS}"
    login = ""
    if plain["word"] is not None:
        login = f"{plain['user']}:{STARS}@"
    elif plain["user"] is not None:
        login = f"{STARS}@" if _is_web(plain) else f"{plain['user']}@"
    place = plain["file"] or f"{plain['scheme']}{login}{plain['place']}"
    return place + (f"?{STARS}" if plain["rest"] else "")


def _is_web(plain: re.Match[str]) -> bool:
    """Whether a name without a password may be a token."""
    return (plain["scheme"] or "").lower().startswith("http")


def _remember_address(text: str, shown: str) -> None:
    if shown == text:
        return
    remember(text, shown)
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        scheme = _SCHEME.match(text)
        _remember_pieces(text[scheme.end() :] if scheme else text)
        return
    if plain["word"] is not None:
        word = plain["word"][1:]
        remember(word)
        _remember_login(plain["user"], word)
        if "@" in word:
            _remember_pieces(word)
    elif plain["user"] and _is_web(plain):
        remember(plain["user"])
    _remember_fields((plain["rest"] or "")[1:])


def _remember_pieces(text: str) -> None:
    """Everything that a text might be cut into by those who read it in another way."""
    login, _, _ = text.rpartition("@")
    remember(login.partition(":")[2])
    for piece in re.split(r"[@:/?#&=;,\s]+", text):
        _remember_if_odd(piece)


def _remember_fields(text: str) -> None:
    """Values of fields such as `password=…`, also inside another field as in `options=-cpassword=…`."""
    for part in re.split(r"[?&;#]|\s+(?=[\w.-]+\s*=)", text):
        name, mark, value = part.partition("=")
        if not mark:
            _remember_if_odd(part)
        elif name.strip().lower() not in OPEN_FIELDS:
            value = value.strip(" '\"{}")
            _remember_if_odd(value)
            inner = unquote_plus(value)
            if "=" in inner:
                _remember_fields(inner)


def _remember_login(user: str, password: str) -> None:
    """As a web client sends it."""
    login = f"{unquote(user)}:{unquote(password)}".encode("utf-8", "surrogatepass")
    remember(base64.b64encode(login).decode())


def _remember_if_odd(value: str) -> None:
    if value.lower() not in WORDS:
        remember(value)


def remember(value: str, shown: str = STARS) -> None:
    """From now on `redact` writes `shown` in place of a value, as it is given and without its percent-encoding."""
    for form in {value, unquote(value), unquote_plus(value)} - _known.keys():
        if len(form.strip()) >= LEAST:
            _add(form, _Secret(max(re.findall("[A-Za-z0-9]+", form), key=len, default=""), _spellings(form), shown))


def _add(value: str, secret: _Secret) -> None:
    global _known
    with _growing:
        _known = dict(sorted([*_known.items(), (value, secret)], key=lambda item: -len(item[0])))


def remember_environment() -> None:
    """Remembers passwords and keys of the environment, and what is secret in its addresses."""
    for name, value in os.environ.items():
        if NAMES.search(name):
            _remember_if_odd(value)
        elif "@" in value and _SCHEME.match(value):
            _remember_address(value, _show(value))
    if password := os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        _remember_login(os.environ.get("MLFLOW_TRACKING_USERNAME", ""), password)


def remember_arguments(values: Iterable[object]) -> None:
    """Remembers what is secret in addresses among the values of flags, such as `storage.path=s3://key:…@bucket`."""
    for value in values:
        if isinstance(value, list):
            remember_arguments(value)
        elif isinstance(value, str) and (address := _WITH_LOGIN.search(value)):
            _remember_address(address[0], _show(address[0]))


def has_login(place: str) -> bool:
    """Whether the address of a storage holds a user, a key or options; what is secret in it is remembered then."""
    mark, rest = place.partition("://")[1:]
    login = rest.rpartition("@")[0]
    found = bool(mark) and ("?" in rest or ":" in login or "@" in rest.partition("/")[0])
    if found:
        _remember_address(place, _show(place))
    return found


def _spellings(value: str) -> re.Pattern[str]:
    """A pattern of a value as it is, in Python's, JSON's, SQL's, a shell's or HTML's quotes, or percent-encoded."""
    inner = "".join(_spelling(run[0]) for run in re.finditer(r"\s+|(.)\1*", value, re.DOTALL))
    if not (value.isalnum() and (len(value) < SHORT or value.isalpha())):
        return re.compile(inner)
    # It is a word that may be part of others. An escape such as `\n` or `%20` before it is no part of a word.
    before = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))" + r"(?<![0-9]\.)" * value.isdigit()
    return re.compile(rf"{before}{inner}(?![A-Za-z0-9])")


def _spelling(run: str) -> str:
    """Of one character several times, or of white space, which may be written in other ways or be left out.

    Every repetition is bounded: of two that are not, one beside the other, long texts would be tried in every division.
    """
    slashes = rf"\\{{1,{QUOTED}}}"
    if run.isspace():
        ways = rf"\s|\+|%(?:25)?[0-9a-fA-F]{{2}}|{slashes}(?:[nrtvf]|x[0-9a-f]{{2}}|u[0-9a-f]{{4}})|&#\w{{1,6}};"
        return f"(?:{ways}){{0,{QUOTED * len(run)}}}"
    if run.isascii() and run.isalnum():
        return run
    if run[0] == "\\":
        return rf"(?:\\|%(?:25)?5[cC]|&#92;|&#x5[cC];){{1,{QUOTED * len(run)}}}"
    char, code, octets = run[0], ord(run[0]), run[0].encode("utf-8", "surrogatepass")
    percent = "".join(f"%(?:25)?{octet:02x}" for octet in octets)
    ways = "|".join(
        [
            rf"\\{{0,{QUOTED}}}{re.escape(char)}",
            rf"(?i:{percent}|{slashes}(?:x{code:02x}|u{code:04x}|U{code:08x})|&#{code};|&#x{code:x};)",
            "".join(rf"{slashes}x{octet:02x}" for octet in octets),
            *(["".join(rf"{slashes}u{unit:04x}" for unit in _surrogates(code))] if code > 0xFFFF else []),
            *{"'": [r"""'"'"'"""], '"': ["&quot;"], "&": ["&amp;"], "<": ["&lt;"], ">": ["&gt;"]}.get(char, []),
        ]
    )
    # SQL and YAML write a quote twice.
    return f"(?:{ways}){{{len(run)},{2 * len(run)}}}"


def _surrogates(code: int) -> tuple[int, int]:
    return 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)


def redact(text: str) -> str:
    """The text with `***` in place of everything that is known to be secret, and of what looks like it in addresses.

    A name without a password stays, except before a web address, where it may be a token.
    """

    def hide(found: re.Match[str]) -> str:
        web = found["scheme"].lower().startswith("http")
        if found["rest"]:
            return f"{found['scheme']}{found['user']}:{STARS}@"
        return f"{found['scheme']}{STARS}@" if web else f"{found['scheme']}{found['user']}@"

    for secret in _known.values():
        if secret.core in text:
            text = secret.pattern.sub(secret.shown.replace("\\", r"\\"), text)
    return _FIELD.sub(rf"\1{STARS}", _USER_INFO.sub(hide, text))


def cleaned(item: Any) -> Any:
    """A nested value as plain JSON types, every text of it redacted."""
    if isinstance(item, Mapping):
        return {str(key): cleaned(entry) for key, entry in item.items()}
    if isinstance(item, list | tuple):
        return [cleaned(entry) for entry in item]
    if item is None or isinstance(item, bool | int | float):
        return item
    return redact(str(item))


def first_line(error: BaseException) -> str:
    """What an error says, or the one that caused it, in a line without secrets; its type if it says nothing."""
    said = error.__cause__ or error
    # First of all, for a password may hold the end of a line.
    lines = redact(str(said)).strip().splitlines()
    return lines[0] if lines else type(said).__name__


# What a process logs, warns of and dies of


class _Record(logging.LogRecord):
    """A record of any library's log without secrets, whatever handler writes it."""

    def getMessage(self) -> str:
        try:
            return redact(super().getMessage())
        except Exception:  # logging would print message and arguments as they are
            return redact(f"{self.msg} {self.args}")

    @property
    def exc_text(self) -> str | None:
        """The traceback as a formatter has written it."""
        text: str | None = self.__dict__.get("exc_text")
        return text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = text and redact(text)


def guard_output() -> None:
    """From here on nothing secret is in what this process logs, warns of or dies of; hooks of others stay."""
    remember_environment()
    logging.setLogRecordFactory(_Record)
    if warnings.formatwarning is _formatwarning:
        warnings.formatwarning = _warning
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


_formatwarning = warnings.formatwarning


def _warning(*arguments: Any, **options: Any) -> str:
    return redact(_formatwarning(*arguments, **options))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _uncaught_in_thread(given: Any) -> None:
    if given.exc_type is not SystemExit:
        print(redact(f"Exception in thread {given.thread and given.thread.name}:"), file=sys.stderr)
        _uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def _unraisable(given: Any) -> None:
    print(redact(f"{given.err_msg or 'Exception ignored in'}: {given.object!r}"), file=sys.stderr)
    _uncaught(given.exc_type, given.exc_value, given.exc_traceback)
