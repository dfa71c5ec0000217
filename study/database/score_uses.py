"""Who has scored on a score part: one list for each part in a database, whichever study or command it was.

A part is known by the digest of its content, so that two studies of the same samples share it.
"""

import sqlalchemy as sa

_TABLE = sa.Table(
    "ardmvc_score_uses",
    sa.MetaData(),
    sa.Column("use_id", sa.Integer, primary_key=True),  # in the order of the uses
    sa.Column("part", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
)


def uses_of(connection: sa.Connection, part: str) -> list[str]:
    """Names of the uses of a part, oldest first. Args: part: digest of its content."""
    return [name for known, name in all_uses(connection) if known == part]


def note_use(connection: sa.Connection, part: str, name: str) -> None:
    """Adds a use, before the part is scored; one that is known is not added again."""
    if name not in uses_of(connection, part):
        _TABLE.create(connection, checkfirst=True)
        connection.execute(sa.insert(_TABLE).values(part=part, name=name))


def all_uses(connection: sa.Connection) -> list[tuple[str, str]]:
    """Part and name of every use, oldest first; none where no use was ever noted."""
    if not sa.inspect(connection).has_table(_TABLE.name):
        return []
    rows = connection.execute(sa.select(_TABLE.c.part, _TABLE.c.name).order_by(_TABLE.c.use_id))
    return [(row.part, row.name) for row in rows]
