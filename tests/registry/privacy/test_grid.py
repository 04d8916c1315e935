"""The grid has every cell that can occur, once, and none that cannot."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import PlanError
from registry.privacy.grid import Grid, selectable_strategies
from registry.privacy.settings import GRID_LEVELS
from rl.catalogue import ActionCatalogue, Strategy

STRATEGIES = ("ask", "inform", "offer", "wait")
SEGMENTS = ("new", "loyal")
ACTS = ("accept", "question", "other")

EDGES = st.sets(st.integers(2, 12), max_size=4).map(lambda later: (1, *sorted(later)))
GRIDS = st.builds(
    Grid,
    level=st.sampled_from(GRID_LEVELS),
    turn_edges=EDGES,
    strategies=st.sampled_from([STRATEGIES, STRATEGIES[:1]]),
    segments=st.sampled_from([SEGMENTS, ()]),
    customer_acts=st.sampled_from([ACTS, ACTS[:2]]),
)
DIALOGUES = st.lists(
    st.tuples(st.sampled_from(STRATEGIES), st.sampled_from([None, "accept", "question", "shout"])),
    min_size=1,
    max_size=20,
)


def grid(**changes: Any) -> Grid:
    values: dict[str, Any] = {
        "level": "turn_segment_act_strategy",
        "turn_edges": (1, 2, 4, 8),
        "strategies": STRATEGIES,
        "segments": SEGMENTS,
        "customer_acts": ACTS,
    }
    return Grid(**{**values, **changes})


def band_text(step: int, edges: tuple[int, ...]) -> str:
    """The band of a step as `turn_band` in transforms/macros writes it."""
    first = max(edge for edge in edges if edge <= step)
    later = [edge for edge in edges if edge > step]
    if not later:
        return f"{first}+"
    return str(first) if later[0] == first + 1 else f"{first}-{later[0] - 1}"


def cells_of(
    steps: list[tuple[str, str | None]], segment: str | None, of: Grid, converted: bool
) -> list[tuple[str, str, str]]:
    """Transitions of one dialogue: (strategy, act of the last customer turn before it) per step."""
    level = GRID_LEVELS.index(of.level)
    buckets = []
    for k, (_, act) in enumerate(steps):
        last = "start" if k == 0 else steps[k - 1][0]
        told = segment if segment in of.segments else "other"
        heard = "none" if act is None else act if act in of.customer_acts else "other"
        buckets.append(
            "|".join(
                (
                    band_text(k + 1, of.turn_edges),
                    last if level >= 3 else "any",
                    told if level >= 1 and of.segments else "any",
                    heard if level >= 2 else "any",
                )
            )
        )
    following = [*buckets[1:], "converted" if converted else "ended"]
    return [(bucket, step[0], then) for bucket, step, then in zip(buckets, steps, following, strict=True)]


@given(
    of=GRIDS, steps=DIALOGUES, segment=st.sampled_from(["new", "loyal", "unheard of", None]), converted=st.booleans()
)
def test_whatever_a_dialogue_does_its_cells_are_in_the_grid(
    of: Grid, steps: list[tuple[str, str | None]], segment: str | None, converted: bool
) -> None:
    steps = [(strategy if strategy in of.strategies else of.strategies[0], act) for strategy, act in steps]
    found = cells_of(steps, segment, of, converted)
    assert set(found) <= set(of.transitions())
    assert {(bucket, strategy) for bucket, strategy, _ in found} <= set(of.cells())
    assert {bucket for bucket, _, _ in found} <= {bucket for bucket, _ in of.replies()}


@given(of=GRIDS)
def test_no_cell_is_listed_twice_and_sizes_are_the_lengths_of_the_lists(of: Grid) -> None:
    for cells, n in (
        (list(of.transitions()), of.n_transitions),
        (list(of.cells()), of.n_cells),
        (list(of.replies()), of.n_replies),
    ):
        assert len(cells) == len(set(cells)) == n
    assert sum(of.n_cells_in_band(band) for band in range(len(of.bands))) == of.n_cells


def test_cells_that_cannot_occur_are_left_out() -> None:
    transitions = set(grid().transitions())
    assert ("2-3|ask|new|accept", "offer", "4-7|offer|new|question") in transitions
    banned = {
        ("2-3|ask|new|accept", "offer", "1|start|new|accept"): "an earlier band",
        ("2-3|ask|new|accept", "offer", "8+|offer|new|accept"): "a band skipped",
        ("1|start|new|accept", "offer", "1|offer|new|accept"): "a band of one step entered twice",
        ("2-3|ask|new|accept", "offer", "2-3|ask|new|accept"): "another last strategy than the one chosen",
        ("2-3|ask|new|accept", "offer", "4-7|offer|loyal|accept"): "another segment",
        ("1|ask|new|accept", "offer", "ended"): "a first step after another one",
        ("2-3|start|new|accept", "offer", "ended"): "a later step after none",
    }
    assert not transitions & set(banned)


def test_a_level_tells_apart_what_it_says_and_nothing_else() -> None:
    buckets = {level: {bucket for bucket, _ in grid(level=level).cells()} for level in GRID_LEVELS}
    assert buckets["turn"] == {f"{band}|any|any|any" for band in ("1", "2-3", "4-7", "8+")}
    assert "2-3|any|new|any" in buckets["turn_segment"]
    assert "2-3|any|other|none" in buckets["turn_segment_act"]
    assert "2-3|ask|loyal|question" in buckets["turn_segment_act_strategy"]
    assert [len(buckets[level]) for level in GRID_LEVELS] == [4, 12, 48, 48 // 4 * (1 + 3 * 4)]


def test_without_a_list_segments_are_not_told_apart() -> None:
    assert {bucket.segment for bucket in grid(segments=()).buckets} == {"any"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"segments": ("new", "new")}, "'new' twice"),
        ({"segments": ("all",)}, "segment 'all'"),
        ({"strategies": ("a|b",)}, r"strategy 'a\|b'"),
        ({"strategies": ("start",)}, "strategy 'start'"),
        ({"customer_acts": ("none",)}, "customer act 'none'"),
        ({"strategies": ()}, "no strategy"),
    ],
)
def test_names_that_would_be_read_as_something_else_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        grid(**changes)


def test_strategies_come_from_the_catalogue_without_those_that_are_never_chosen() -> None:
    catalogue = ActionCatalogue(
        (
            Strategy("ask", "", 1, "selectable"),
            Strategy("thank", "", 2, "after_decision"),
            Strategy("wait", "", 3, "fallback"),
        )
    )
    assert selectable_strategies(catalogue) == ("ask", "wait")


def test_equal_grids_have_one_hash() -> None:
    assert grid().to_json() == grid().to_json()
    assert grid().to_json()["hash"] != grid(segments=("new",)).to_json()["hash"]
