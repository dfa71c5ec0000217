"""Output whose encoding lacks λ or ×, as without UTF-8: such characters are spelt, and nothing dies of them."""

import codecs
import io
import sys

SPELT = {
    **{"ε": "eps", "λ": "lambda", "γ": "gamma", "κ": "kappa", "ρ": "rho", "σ": "sigma", "τ": "tau", "μ": "mu"},
    **{"×": "x", "±": "+-", "−": "-", "–": "-", "≤": "<=", "≥": ">=", "∞": "inf", "→": "->", "…": "...", "·": "."},
    **{"†": "+", "─": "-", "━": "-", "│": "|", "“": '"', "”": '"', "’": "'"},
}
"""Characters of our own texts and tables; all others are shown by their code, as `\\xfc`."""


def show_everything() -> None:
    """From here on standard output and error take any text."""
    codecs.register_error("ardmvc-spelt", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's takes any text by itself
            stream.reconfigure(errors="ardmvc-spelt")


def _spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    coded = (SPELT.get(character) or character.encode("ascii", "backslashreplace").decode() for character in text)
    return "".join(coded), error.end
