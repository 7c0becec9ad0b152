"""The plan: budgets, rankings, widths, exclusions, and the file that records it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import nets
from helpers import TO_THE_UNIT, analyse, budget_of, build
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small import NORMED, UNKNOWN, chain, half_plan

from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.planning.search import search_plan
from obc_onnx.run.api import compress
from obc_onnx.saliency.options import RANKINGS
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from obc_onnx.branches.left import Left
    from obc_onnx.coupling.model import Coupling

UNIT_A = 64 * 27 + 36 * 20 * 9
"""MACs of one unit of `a:0` in `chain`: a row that it writes, and what reads it."""
UNIT_B = 36 * 12 * 9 + 4
FULL = 12 * 64 * 27 + 20 * UNIT_B


@cache
def coupling() -> Coupling:
    return analyse(chain()).coupling


def random_scores(of: Coupling, seed: int) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.size) for group in of.groups}


def plan_with(
    scores: Mapping[str, NDArray[np.float64]],
    of: Coupling | None = None,
    budget: Budget | None = None,
    **said: Any,
) -> PruningPlan:
    """Plan with the same scores at every step."""
    meets = budget or budget_of(**said)
    return search_plan(of or coupling(), lambda _: scores, meets, "given", 0)


def widths(plan: PruningPlan) -> dict[str, int]:
    return {name: len(entry["kept"]) for name, entry in plan.groups.items()}


def macs_of(a: int, b: int) -> int:
    """Count the MACs of `chain` with `a` and `b` units, by its formula."""
    return 64 * a * 27 + 36 * b * a * 9 + b * 4


def test_the_costs_of_the_example_are_those_of_the_formula() -> None:
    assert coupling().macs({}) == FULL == macs_of(12, 20)
    assert macs_of(12, 20) - macs_of(11, 20) == UNIT_A
    assert macs_of(12, 20) - macs_of(12, 19) == UNIT_B


budgets = st.builds(
    budget_of,
    target_macs=st.floats(0.05, 1.0) | st.sampled_from([k / 10 for k in range(1, 11)]),
    ranking=st.sampled_from(RANKINGS),
    steps=st.integers(1, 5),
    round_to=st.integers(1, 6),
    min_channels=st.just(1),
)


@given(budget=budgets, seed=st.integers(0, 999))
def test_the_budget_is_met_and_with_any_chunk_more_it_would_not_be(
    budget: Budget, seed: int
) -> None:
    try:
        plan = search_plan(
            coupling(), lambda _: random_scores(coupling(), seed), budget, "given", seed
        )
    except InfeasibleTargetError:
        least = tuple(min(budget.scope.round_to, size) for size in (12, 20))
        assert macs_of(*least) / FULL > budget.target_macs
        return
    width = widths(plan)
    a, b = width["a:0"], width["b:0"]
    assert plan.macs == (FULL, macs_of(a, b))
    assert macs_of(a, b) / FULL <= budget.target_macs
    if budget.ranking in ("uniform", "isomorphic"):  # shares stay equal
        return
    if a < 12:
        assert macs_of(min(a + budget.scope.round_to, 12), b) / FULL > budget.target_macs
    if b < 20:
        assert macs_of(a, min(b + budget.scope.round_to, 20)) / FULL > budget.target_macs


@given(budget=budgets, seed=st.integers(0, 999))
def test_widths_that_shrink_are_multiples_and_no_group_is_emptied(
    budget: Budget, seed: int
) -> None:
    try:
        plan = plan_with(random_scores(coupling(), seed), budget=budget)
    except InfeasibleTargetError:
        return
    for name, width in widths(plan).items():
        size = plan.groups[name]["size"]
        assert width == size or (
            width % budget.scope.round_to == 0 and width >= budget.scope.round_to
        )


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    model=nets,
    budget=budgets,
    seed=st.integers(0, 999),
)
def test_no_network_exceeds_its_budget_by_recount(
    model: onnx.ModelProto, budget: Budget, seed: int
) -> None:
    graph, _, of = analyse(model)
    assume(of.groups)
    try:
        plan = plan_with(random_scores(of, seed), of, budget=budget)
    except InfeasibleTargetError:
        return
    pruned = remove_units(of, plan.keep(of))
    recounted = analyse(pruned).coupling.macs({})
    assert plan.macs == (of.macs({}), recounted)
    assert recounted / of.macs({}) <= budget.target_macs
    assert plan.params == (graph.params, pruned.params)


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("left", range(1, 11))
def test_a_target_that_whole_units_meet_exactly_is_met_exactly(left: int, steps: int) -> None:
    text = (
        "net (float[N,5] x) => (float[N,5] y) <float[5,10] a, float[10,5] b>"
        "{ p = MatMul(x, a) y = MatMul(p, b) }"
    )
    of = analyse(build(text)).coupling
    plan = plan_with(random_scores(of, 0), of, target_macs=left / 10, steps=steps)
    assert plan.macs == (100, 10 * left)


def test_a_target_of_all_macs_removes_nothing() -> None:
    plan = plan_with(random_scores(coupling(), 0), target_macs=1.0)
    assert plan.initializers == {}
    assert plan.keep(coupling()) == {}


def test_units_with_the_least_saliency_go_first() -> None:
    scores = {"a:0": np.full(12, 9.0), "b:0": np.arange(20.0)}
    plan = plan_with(scores, target_macs=1 - 3 * UNIT_B / FULL)
    assert plan.groups["a:0"]["kept"] == list(range(12))
    assert plan.groups["b:0"]["kept"] == list(range(3, 20))


def test_equal_saliencies_go_in_the_order_of_their_units() -> None:
    scores = {"a:0": np.full(12, 9.0), "b:0": np.ones(20)}
    plan = plan_with(scores, target_macs=1 - 2 * UNIT_B / FULL)
    assert plan.groups["b:0"]["kept"] == list(range(2, 20))


@pytest.mark.parametrize(
    ("criterion", "ranking"), [("jacobian", "per-cost"), ("l2", "global"), ("mine", "global")]
)
def test_a_criterion_has_a_ranking_that_suits_it(criterion: str, ranking: str) -> None:
    equal = {group.name: np.ones(group.size) for group in coupling().groups}
    for asked, found in ((None, ranking), ("global", "global"), ("per-mac", "per-cost")):
        budget = Budget(0.9, ranking=asked)
        assert search_plan(coupling(), lambda _: equal, budget, criterion, 0).ranking == found


@pytest.mark.parametrize(
    ("ranking", "shrinks"), [("global", "b:0"), ("per-cost", "a:0"), ("per-mac", "a:0")]
)
def test_ranking_per_cost_removes_the_unit_that_saves_most_for_its_score(
    ranking: Any, shrinks: str
) -> None:
    scores = {"a:0": np.full(12, 1.5), "b:0": np.full(20, 1.0)}
    assert 1.5 / UNIT_A < 1.0 / UNIT_B, "a unit of `a` is dearer, but saves more than that"
    width = widths(plan_with(scores, target_macs=0.95, ranking=ranking))
    assert [name for name, size in {"a:0": 12, "b:0": 20}.items() if width[name] < size] == [
        shrinks
    ]


@pytest.mark.parametrize("pattern", ["a", "a_*", "[ac]", "p", "q"])
def test_excluded_groups_stay_whole_by_any_name_that_touches_them(pattern: str) -> None:
    scores = {"a:0": np.zeros(12), "b:0": np.ones(20)}
    assert widths(plan_with(scores, target_macs=0.6))["a:0"] < 12
    plan = plan_with(scores, target_macs=0.6, exclude=(pattern,))
    assert widths(plan)["a:0"] == 12
    assert widths(plan)["b:0"] < 20


def test_a_node_between_two_groups_excludes_both() -> None:
    with pytest.raises(InfeasibleTargetError, match="0 groups"):
        plan_with(random_scores(coupling(), 0), exclude=("r",))


def test_a_node_with_a_name_goes_by_it_alone() -> None:
    model = build(
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[6,3,1,1] a, float[4,6,1,1] b>"
        "{ [first] p = Conv(x, a) y = Conv(p, b) }"
    )
    of = analyse(model).coupling
    with pytest.raises(InfeasibleTargetError, match="0 groups"):
        plan_with(random_scores(of, 0), of, exclude=("first",))
    with pytest.raises(RequestError, match="'p' matches no node"):
        plan_with(random_scores(of, 0), of, exclude=("p",))


def test_an_infeasible_target_states_the_least_share_and_what_holds_it() -> None:
    least = macs_of(4, 4)
    holders = {"Conv 'p'": 64 * 4 * 27, "Conv 'r'": 36 * 16 * 9, "Gemm 'y'": 16}
    with pytest.raises(InfeasibleTargetError) as refusal:
        plan_with(random_scores(coupling(), 0), target_macs=0.01, round_to=4)
    message = str(refusal.value)
    assert f"least width in each of 2 groups {least / FULL:.4g} are left" in message
    for label, cost in holders.items():
        assert f"{label} {100 * cost / FULL:.1f} %" in message
    assert message.index("Conv 'p'") < message.index("Conv 'r'") < message.index("Gemm 'y'")
    assert "Frozen: graph input 'x'; graph output 'y'" in message
    plan_with(random_scores(coupling(), 0), target_macs=least / FULL, round_to=4)


def test_what_has_no_rule_is_named_as_what_holds_a_target() -> None:
    of = analyse(build(UNKNOWN)).coupling
    with pytest.raises(
        InfeasibleTargetError, match="SampleOp 'q': operator 'SampleOp' has no rule"
    ):
        plan_with(random_scores(of, 0), of, target_macs=0.01)


def test_every_step_scores_again_with_what_was_removed() -> None:
    seen: list[int] = []

    def score(left: Left) -> dict[str, NDArray[np.float64]]:
        seen.append(sum(int((~kept).sum()) for kept in left.keep.values()))
        return random_scores(coupling(), len(seen))

    search_plan(coupling(), score, Budget(0.3, steps=4, scope=TO_THE_UNIT), "given", 0)
    assert seen[0] == 0
    assert len(seen) == 4
    assert all(before < after for before, after in pairwise(seen))


def test_a_later_step_uses_its_own_saliency() -> None:
    def score(left: Left) -> dict[str, NDArray[np.float64]]:
        order = np.arange(20.0)
        return {"a:0": np.full(12, 99.0), "b:0": order if left.is_whole else -order}

    plan = search_plan(
        coupling(), score, Budget(1 - 4 * UNIT_B / FULL, steps=2, scope=TO_THE_UNIT), "given", 0
    )
    assert plan.groups["b:0"]["kept"] == list(range(2, 18))


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        ({"target_macs": 0.0}, "found 0"),
        ({"target_macs": -1.0}, "found -1"),
        ({"target_macs": 1.01}, "found 1.01"),
        ({"target_macs": float("nan")}, "found nan"),
        ({"steps": 0}, "steps"),
        ({"round_to": 0}, "round_to = 0 is none of: a number above 0"),
        ({"min_channels": 0}, "min = 0 is none of"),
        ({"min_channels": 1.5}, r"min = 1\.5 is none of"),
        ({"ranking": "local"}, "'local'"),
        ({"exclude": ("nowhere*",)}, r"'nowhere\*'"),
    ],
)
def test_a_budget_out_of_range_is_refused(budget: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError, match=part):
        plan_with(random_scores(coupling(), 0), **budget)


def test_the_initializers_of_a_plan_are_the_surgery_in_numpy_alone() -> None:
    before = {t.name: t for t in compress(build(NORMED), budget=1.0).model.graph.initializer}
    result = compress(build(NORMED), budget=0.4, recover="none")
    arrays = analyse(build(NORMED)).graph.initializers
    plan = json.loads(result.plan.to_json())
    for name, found in result.graph.initializers.items():
        expected = arrays[name]
        for axis, kept in plan["initializers"].get(name, {}).items():
            expected = expected.take(kept, int(axis))
        np.testing.assert_array_equal(found, expected)
    changed = {n for n, a in result.graph.initializers.items() if a.shape != arrays[n].shape}
    assert changed == plan["initializers"].keys() <= before.keys()


def test_a_plan_records_the_model_the_target_and_the_criterion() -> None:
    fields = json.loads(half_plan().to_json())
    assert fields["model_sha256"] == analyse(chain()).graph.sha256
    assert (fields["targets"], fields["criterion"], fields["format"]) == ({"macs": 0.5}, "l2", 3)
    assert {n: g["size"] for n, g in fields["groups"].items()} == {"a:0": 12, "b:0": 20}


def test_a_plan_survives_its_file_and_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(half_plan().to_json())
    read = PruningPlan.load(path)
    assert read == half_plan()
    assert read.to_json() == half_plan().to_json()
    shuffled = json.loads(half_plan().to_json())
    shuffled["groups"] = dict(reversed(shuffled["groups"].items()))
    path.write_text(json.dumps(dict(reversed(shuffled.items()))))
    assert PruningPlan.load(path).to_json() == half_plan().to_json()
    for dim, kept in half_plan().keep(coupling()).items():
        np.testing.assert_array_equal(read.keep(coupling())[dim], kept)


def edited(**groups: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(half_plan().to_json())
    return {**fields, "groups": {**fields["groups"], **groups}}


def group(kept: Any, size: Any = 12) -> dict[str, Any]:
    return {"a:0": {"size": size, "kept": kept}}


@pytest.mark.parametrize(
    ("groups", "part"),
    [
        (group([0, 1, 12]), "'a:0'"),
        (group([]), "keeps no units"),
        (group([0, 1], 13), "group 'a:0' is not in this model"),
        ({"stem:0": {"size": 12, "kept": [0]}}, "group 'stem:0' is not in this model"),
        (group([0]), "initializer 'a' do not follow from its groups"),
    ],
    ids=["out of range", "empty", "another size", "unknown", "without its initializers"],
)
def test_an_edited_plan_that_does_not_fit_the_model_is_refused(
    groups: dict[str, Any], part: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(edited(**groups)))
    with pytest.raises(RequestError, match=part):
        PruningPlan.load(path).keep(coupling())


ODD = [
    *(edited(**group(kept)) for kept in ("abc", [0.5], [-1], [1, 0], [1, 1], [[0]], [True], None)),
    *(edited(**group([0], size)) for size in ("12", None, -1)),
    {**edited(), "groups": [1]},
    {**edited(), "groups": {"a:0": 3}},
    *({**edited(), "initializers": {"a": axes}} for axes in (3, {"q": [1]}, {"0": [[1]]})),
    *({**edited(), "macs": macs} for macs in (5, [1], ["a", "b"])),
    *({**edited(), "targets": t} for t in ("half", {"macs": "half"}, {"macs": 0}, {"joules": 1})),
    {**edited(), "model_sha256": 5},
    {**edited(), "ranking": "local"},
    {**edited(), "more": 1},
    {name: value for name, value in edited().items() if name != "seed"},
]


@pytest.mark.parametrize("fields", ODD, ids=range(len(ODD)))
def test_an_edited_plan_with_fields_of_another_kind_is_refused_when_it_is_read(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(RequestError, match=r"plan\.json"):
        PruningPlan.load(path)


def test_a_plan_edited_throughout_is_applied() -> None:
    kept = [0, 5]
    slices = {"a": {"0": kept}, "a_bias": {"0": kept}, "b": {"1": kept}}
    whole = {"size": 20, "kept": list(range(20))}
    groups = {"a:0": {"size": 12, "kept": kept}, "b:0": whole}
    plan = replace(half_plan(), groups=groups, initializers=slices)
    pruned = remove_units(coupling(), plan.keep(coupling()))
    weights = coupling().graph.initializers
    np.testing.assert_array_equal(pruned.initializers["a"], weights["a"][kept])
    np.testing.assert_array_equal(pruned.initializers["b"], weights["b"][:, kept])
