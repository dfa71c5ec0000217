"""A second stable partition: by hand, and planted in views."""

import numpy as np
import pytest

from ardmvc_core.evaluation.agreement import adjusted_rand_index
from ardmvc_core.selection.reference_partition import PlainRun, reference_partition
from ardmvc_core.selection.voters import Voter, leftover, second_partition, view_voters, with_objections

# Three clusters of twelve; the other partition crosses it: each of its clusters has the same share of each.
VOTE = np.repeat([0, 1, 2], 12)
OTHER = np.tile(np.repeat([0, 1, 2], 4), 3)
FIRST, BOTH = frozenset({0}), frozenset({0, 1})


def test_what_the_vote_leaves_has_no_cluster_means() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    # The clusters differ along the first axis only: the second is left, around its mean.
    np.testing.assert_allclose(leftover(rows, np.array([0, 0, 1, 1])), [[0, -0.5], [0, 0.5], [0, -0.5], [0, 0.5]])
    # Clusters with equal means leave all there is.
    np.testing.assert_allclose(leftover(rows, np.array([0, 1, 1, 0])), rows - 0.5)


@pytest.mark.parametrize(
    ("voters", "expected"),
    [
        ([], False),
        # One voter alone may be a poor one; two that agree on the vote's partition say nothing new.
        ([Voter(OTHER)], False),
        ([Voter(VOTE), Voter(VOTE)], False),
        ([Voter(VOTE), Voter(OTHER)], False),
        ([Voter(OTHER), Voter((OTHER + 1) % 3)], True),
        # k-means on the same view twice, or on a view and on all of them, is one opinion.
        ([Voter(OTHER, FIRST), Voter(OTHER, FIRST)], False),
        ([Voter(OTHER, FIRST), Voter(OTHER, BOTH)], False),
        ([Voter(OTHER, FIRST), Voter(OTHER, frozenset({1}))], True),
        ([Voter(OTHER, FIRST), Voter(OTHER)], True),
        # Two that have collapsed agree entirely.
        ([Voter(np.eye(36, dtype=np.int64)[0])] * 2, False),
    ],
)
def test_a_second_partition_takes_two_independent_voters(voters: list[Voter], expected: bool) -> None:
    assert abs(adjusted_rand_index(VOTE, OTHER)) < 0.1
    assert second_partition(VOTE, voters, 3) == expected
    plain = reference_partition([PlainRun(VOTE, loss, None) for loss in (1.0, 2.0, 3.0)], 3)
    known = with_objections(plain, voters, 3)
    assert (known.second_partition, known.reliable) == (expected, not expected)


@pytest.mark.parametrize(("moved", "expected"), [(8, True), (16, False)])
def test_they_must_agree_with_each_other(moved: int, expected: bool) -> None:
    """With a share s of each cluster in the next one, ARI is ((s² + (1 − s)²) / 3 − 1/9) / (1/3 − 1/9)."""
    vote, other = np.repeat([0, 1, 2], 300), np.tile(np.repeat([0, 1, 2], 100), 3)
    unsure = other.copy()
    step = np.arange(900) % 40 < moved
    unsure[step] = (unsure[step] + 1) % 3
    s = moved / 40
    assert adjusted_rand_index(other, unsure) == pytest.approx(((s**2 + (1 - s) ** 2) / 3 - 1 / 9) / (2 / 9), abs=0.01)
    assert second_partition(vote, [Voter(other), Voter(unsure)], 3) == expected


def test_only_what_the_vote_leaves_of_the_views_shows_the_weaker_of_two_partitions() -> None:
    draw = np.random.default_rng(0)
    strong, weak = draw.permutation(np.arange(300) % 3), draw.permutation(np.arange(300) % 3)
    views = [
        draw.choice([-4.0, 4.0], (3, width))[strong]
        + draw.choice([-2.0, 2.0], (3, width))[weak]
        + draw.standard_normal((300, width))
        for width in (20, 30)
    ]
    voters = view_voters(views, strong, 3, seed=3)
    found = [[adjusted_rand_index(known, voter.clusters) > 0.9 for known in (strong, weak)] for voter in voters]
    assert found == [[True, False]] * 2 + [[False, True]] * 2 + [[True, False]]
    assert [voter.views for voter in voters] == [{0}, {1}, {0}, {1}, {0, 1}]
    assert second_partition(strong, voters, 3)
    # Without the weaker one there is nothing to be found in noise.
    views = [draw.standard_normal((3, width))[strong] * 4 + draw.standard_normal((300, width)) for width in (20, 30)]
    assert not second_partition(strong, view_voters(views, strong, 3, seed=3), 3)
