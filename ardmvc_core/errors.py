"""The one kind of error that is meant for people."""


class UserError(Exception):
    """What was asked for cannot be done. The text says why and what to do, in a few lines without secrets: a command
    prints it in place of a traceback."""
