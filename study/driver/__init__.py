"""Gives trials out and hears of them; the only room that knows Ray."""

from ardmvc_core.errors import UserError


class StudyBroken(UserError):
    """The driver could not go on, for instance without its database; the same command goes on once that is mended."""


class StudyRefused(UserError):
    """The study cannot start; the message says why. No trial was started and nothing stored was changed."""
