"""Which data set is asked for: a name in `DATASETS`, from where, and how much of it."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from ardmvc_core.data.dataset import MIN_SAMPLES, Source
from ardmvc_core.data.scaling import Scale
from ardmvc_core.data.sources import DATASETS
from ardmvc_core.data.user_file import Orientation
from ardmvc_core.ranges import NumpySeed, Range, shown, value_faults

DatasetName = Literal[*DATASETS]  # type: ignore[valid-type]
DEFAULT_NOISE = 0.2


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which data set, from where, and how much of it. A field that means nothing for the named set is refused."""

    name: DatasetName
    """Key of `DATASETS`."""
    root: str | None = None
    """Folder with the IDX files (or the parent of `mnist/`, `fashion-mnist/`) or with RegDB; None: `ARDMVC_DATA`,
    then Debian's folder, then a download."""
    path: str | None = None
    """The user's file or folder; needed by `file` and `npz`, refused elsewhere."""
    views: str | tuple[str, ...] | None = None
    """Of `file`: the name of the cell that holds the views, or the name of each view; None: told by the names."""
    labels: str | None = None
    """Of `file`: the name of the labels; None: `labels`, or what else the field calls them (`y`, `gt`, `truth`)."""
    n_clusters: Annotated[int, Range(2, 10**6)] | None = None
    """Of `file`: K, ≥ 2 and at least the number of classes; needed without labels. None: the number of classes."""
    orientation: Orientation | None = None
    """Of `file`: whether samples are the rows or the columns of its matrices; None: told by the labels' length."""
    scale: Scale | tuple[Scale, ...] | None = None
    """Of `file`: how views are scaled, all alike or each its own way: `minmax` each feature by its range, `standard`
    by mean and deviation, `unit_norm` each sample to length 1, `tfidf` counts of words, `none` features left in
    proportion; fitted on the training part. None: `minmax`."""
    classes: tuple[Annotated[int, Range(0, 9)], ...] | None = None
    """Digits taken into `noisy_digits`, at least two of 0..9; None: 0, 1, 2, 3, 4."""
    samples: Annotated[int, Range(MIN_SAMPLES, 10**9)] | None = None
    """Only the first so many rows of the shuffle, ≥ 10; None: all."""
    noise: Annotated[float, Range(0, 1_000)] = DEFAULT_NOISE
    """Standard deviation of the noise on view 2 of the noisy sets, on the [−1, 1] scale of the images, ≥ 0."""
    seed: NumpySeed = 7
    """Seed of the recipe (pairs, noise), in [0, 2³²); 7 is the published one."""
    shuffle_seed: NumpySeed | None = None
    """Seed of the shuffle that the parts are cut from, in [0, 2³²); None: `seed`, as published."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {shown(self.name)}")
        faults = [*self._misplaced(), *self._bad_values()]
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def source(self) -> Source:
        """What is known of the data set before it is read."""
        return DATASETS[self.name]

    def at(self, place: str) -> "DatasetConfig":
        """The same data set, read from another place: the file, or the folder that `root` names.

        Raises: ValueError for a data set that is read from nowhere.
        """
        if "path" in self.source.fields:
            return replace(self, path=place)
        if "root" in self.source.fields:
            return replace(self, root=place)
        raise ValueError(f"{self.name} is read from no file, so its data lie nowhere else, got {shown(place)}")

    def _misplaced(self) -> list[str]:
        special = {field for source in DATASETS.values() for field in source.fields}
        own = [field for field in fields(self) if field.name in special]
        given = [field.name for field in own if getattr(self, field.name) != field.default]
        return [
            f"{field} must be left out for {self.name}, got {shown(getattr(self, field))} "
            f"(it belongs to {', '.join(name for name, source in DATASETS.items() if field in source.fields)})"
            for field in given
            if field not in self.source.fields
        ]

    def _bad_values(self) -> list[str]:
        faults = []
        if "path" in self.source.fields and not self.path:
            faults.append(f"path must be the file or folder to read, got {self.path!r}")
        if self.classes is not None and not len(set(self.classes)) == len(self.classes) >= 2:
            faults.append(f"classes must be at least two different digits, got {shown(self.classes)}")
        return faults + value_faults(self)
