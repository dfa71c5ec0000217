"""Views cut into batches."""

from collections.abc import Iterator

from ardmvc_core.types import Views


def in_batches(views: Views, size: int) -> Iterator[Views]:
    """The views in order, `size` samples at a time; the last batch may be smaller."""
    yield from zip(*(view.split(size) for view in views), strict=True)


def in_full_batches(views: Views, size: int) -> Iterator[Views]:
    """As `in_batches`, but a last batch of a single sample joins the one before it: BatchNorm in training mode cannot
    take it."""
    count = len(views[0])
    if count > size > 1 and count % size == 1:
        last = count - size - 1
        yield from in_batches(tuple(view[:last] for view in views), size) if last else ()
        yield tuple(view[last:] for view in views)
    else:
        yield from in_batches(views, size)
