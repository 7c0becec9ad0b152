"""Budgets: several targets at once, rankings, least widths, patterns, and files of limits."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import analyse, budget_of, build
from nets import NETS, model_of
from small import assert_refused, chain, invoke, saved

from obc_onnx.cli.plan_options import parse_target, parse_target_bytes
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.costs import FileSize, Macs, Params, share_of
from obc_onnx.planning.scope import Limits, Scope, read_config
from obc_onnx.planning.search import search_plan
from obc_onnx.run.api import compress
from obc_onnx.saliency.options import RANKINGS
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.planning.plan import PruningPlan

TWINS = (
    "net (float[N,6] x) => (float[N,4] y) <float[16,6] a, float[6,16] b, float[16,6] c,"
    " float[6,16] d, float[10,6] e, float[4,10] fc>"
    "{ p = Gemm<transB=1>(x, a) q = Tanh(p) r = Gemm<transB=1>(q, b) s = Add(x, r)"
    "  t = Gemm<transB=1>(s, c) u = Tanh(t) v = Gemm<transB=1>(u, d) w = Add(s, v)"
    "  k = Gemm<transB=1>(w, e) l = Tanh(k) y = Gemm<transB=1>(l, fc) }"
)
"""Two equal branches, `a:0` and `c:0` of 16 units, and `e:0` of 10 in front of the classifier."""


@cache
def coupling(net: str = "chain") -> Coupling:
    models = {"chain": chain, "twins": lambda: build(TWINS)}
    return analyse(models[net]() if net in models else model_of(net)).coupling


def scores_of(of: Coupling, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.size) for group in of.groups}


def planned(
    of: Coupling, scores: dict[str, NDArray[np.float64]] | None = None, **budget: Any
) -> PruningPlan:
    given = scores or scores_of(of)
    return search_plan(of, lambda _: given, budget_of(**budget), "given", 0)


def widths(plan: PruningPlan) -> dict[str, int]:
    return {name: len(entry["kept"]) for name, entry in plan.groups.items()}


def costs_of(graph: Graph) -> dict[str, int]:
    """Count everything again on a graph, without any cost object."""
    model = graph.to_model()
    macs, params = analyse(graph).coupling.macs({}), graph.params
    return {"macs": macs, "params": params, "size": len(model.SerializeToString())}


def drawn_targets(rng: np.random.Generator, full: dict[str, int]) -> dict[str, float]:
    """Draw one to three targets, each a share or a number."""
    names = rng.permutation([*full])[: rng.integers(1, 4)]
    shares = {str(name): float(rng.uniform(0.4, 1.0)) for name in names}
    absolute = {n: float(round(share * full[n])) for n, share in shares.items()}
    return {n: absolute[n] if rng.random() < 0.5 else shares[n] for n in shares}


@pytest.mark.parametrize("seed", range(60))
def test_all_targets_hold_by_recount_and_one_cut_less_breaks_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = coupling(str(rng.choice(["chain", "twins", *NETS])))
    full = costs_of(of.graph)
    targets = drawn_targets(rng, full)
    scores = scores_of(of, seed)
    budget = {f"target_{name}": target for name, target in targets.items()}
    ranking = str(rng.choice(RANKINGS))
    try:
        plan = planned(of, scores, steps=1, ranking=ranking, **budget)
    except InfeasibleTargetError:
        least = {g.dim: np.arange(g.size) == 0 for g in of.groups if g.inexact is None}
        found = costs_of(remove_units(of, least)) if not of.tied_axes else dict.fromkeys(full, 1e9)
        assert any(found[n] > share_of(t, full[n]) * full[n] for n, t in targets.items())
        return
    assert plan.targets == targets

    def holds(found: dict[str, int]) -> bool:
        return all(found[n] <= t * (full[n] if t <= 1 else 1) for n, t in targets.items())

    keep = plan.keep(of)
    assert holds(costs_of(remove_units(of, keep)))
    last_cuts = []
    for group in of.groups:
        gone = np.flatnonzero(~keep.get(group.dim, np.ones(group.size, np.bool_)))
        if gone.size:  # the last unit of this group that went is the best of those
            back = keep[group.dim].copy()
            back[gone[np.argmax(scores[group.name][gone])]] = True
            last_cuts.append(costs_of(remove_units(of, {**keep, group.dim: back})))
    assert not last_cuts or not all(map(holds, last_cuts))


@pytest.mark.parametrize("size", range(3000, 12001, 613))
def test_a_size_in_bytes_is_used_up_to_one_unit(size: int) -> None:
    of = coupling()
    plan = planned(of, target_size=size, steps=2)
    keep = plan.keep(of)
    found = len(remove_units(of, keep).to_model().SerializeToString())
    unit = max(FileSize(of).marginal(group, {}).max() for group in of.groups)
    assert size - unit - 16 < found <= size


def test_a_compressed_file_is_no_larger_than_asked(tmp_path: Path) -> None:
    model, small = saved(tmp_path), tmp_path / "small.onnx"
    result = invoke(
        "compress", model, "-o", small, "--target-size", "6.5KB", "--round-to", "1", "--json"
    )
    assert result.exit_code == 0, result.output
    assert '"file bytes within the target"' in result.stdout
    assert 6000 < small.stat().st_size <= 6500


def test_without_a_target_half_of_the_macs_is_left_and_with_others_they_are_free() -> None:
    assert Budget().targets == {"macs": 0.5}
    assert Budget(target_params=0.7).targets == {"params": 0.7}
    plan = planned(coupling(), target_params=0.9)
    assert plan.macs[1] / plan.macs[0] > 0.5
    assert 0.8 < plan.params[1] / plan.params[0] <= 0.9


def test_a_number_that_is_above_what_there_is_removes_nothing() -> None:
    assert planned(coupling(), target_params=1e9).initializers == {}


def test_a_number_out_of_reach_says_how_far_it_goes_in_numbers() -> None:
    least = 27 + 1 + 9 + 1 + 4 + 4
    with pytest.raises(InfeasibleTargetError) as refusal:
        planned(coupling(), target_params=10)
    assert f"cannot reach 10 params: with the least width in each of 2 groups {least} are left" in (
        str(refusal.value)
    )
    assert "What holds it: 'a' " in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0.5", 0.5), ("1", 1.0), ("12e6", 12e6), ("500K", 500e3), ("500k", 500e3)),
        *(
            ("1.1M", 1.1e6),
            ("2G", 2e9),
            ("100", 100.0),
            ("50%", 0.5),
            ("12.5%", 0.125),
            ("100%", 1.0),
        ),
    ],
)
def test_targets_are_shares_or_numbers(text: str, number: float) -> None:
    for parse in (parse_target, parse_target_bytes):
        assert parse(None, None, text) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"), [("1KB", 1e3), ("1.5MiB", 1.5 * 2**20), ("2kib", 2048.0), ("300B", 300.0)]
)
def test_sizes_have_units_of_their_own(text: str, number: float) -> None:
    assert parse_target_bytes(None, None, text) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "half", "M", "5 X", "1MB", "0.0001K", "0%", "101%", "%", "-5%", "1e1%", "1,5", "KK"],
)
def test_a_target_that_is_no_number_is_a_usage_error(text: str, tmp_path: Path) -> None:
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx")
    assert_refused(invoke(*command, "--target-macs", text), f"'{text}'", code=2)


@pytest.mark.parametrize("number", ["-1", "0", "1.5", "inf", "1.0001K"])
def test_a_target_out_of_range_is_refused(number: str, tmp_path: Path) -> None:
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx")
    for name, label in (("params", "params"), ("size", "file bytes")):
        assert_refused(invoke(*command, f"--target-{name}", number), f"target {label} must be")


def first_to_go(a_over_b: float, **targets: float) -> str:
    """Plan with units of `a` worth so many of `b`; return the group whose units go first."""
    scores = {"a:0": np.full(12, a_over_b), "b:0": np.ones(20)}
    width = widths(planned(coupling(), scores, ranking="per-cost", steps=1, **targets))
    (name,) = [name for name, size in {"a:0": 12, "b:0": 20}.items() if width[name] < size]
    return name


def test_ranking_per_cost_divides_by_what_the_targets_that_bind_are_about() -> None:
    """A unit of `a` saves more MACs for its parameters than one of `b` does.

    In shares of the whole, what it saves of both lies between the two.
    """
    of = coupling()
    of_macs, of_params, of_both, mixed = (
        saved["a:0"] / saved["b:0"]
        for saved in (
            {g.name: sum(cost(of).marginal(g, {})[0] / w for cost, w in weights) for g in of.groups}
            for weights in (
                [(Macs, 1)],
                [(Params, 1)],
                [(Macs, Macs(of).full), (Params, Params(of).full)],
                [(Macs, 1), (Params, 1)],
            )
        )
    )
    assert of_params < of_both < mixed < of_macs
    low, high = (of_params + of_both) / 2, (of_both + mixed) / 2
    assert first_to_go(low, target_params=0.95) == "b:0"
    assert first_to_go(low, target_macs=0.95) == "a:0"
    assert first_to_go(low, target_macs=0.95, target_params=0.95) == "a:0"
    assert first_to_go(low, target_macs=1.0, target_params=0.95) == "b:0", "MACs are met already"
    assert first_to_go(high, target_macs=0.95, target_params=0.95) == "b:0", "shares are added"


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("net", ["chain", "twins"])
def test_uniform_takes_the_same_share_of_every_group(net: str, target: float, steps: int) -> None:
    of = coupling(net)
    scores = {name: 100.0**number * s for number, (name, s) in enumerate(scores_of(of).items())}
    plan = planned(of, scores, target_macs=target, ranking="uniform", steps=steps)
    shares = [1 - len(entry["kept"]) / entry["size"] for entry in plan.groups.values()]
    assert max(shares) - min(shares) <= max(1 / entry["size"] for entry in plan.groups.values())
    for name, entry in plan.groups.items():
        gone = np.setdiff1d(np.arange(entry["size"]), entry["kept"])
        assert scores[name][gone].max(initial=0) <= scores[name][entry["kept"]].min()


def test_isomorphic_compares_units_of_equal_groups_and_takes_the_same_share_of_each_set() -> None:
    of = coupling("twins")
    scores = {"a:0": np.arange(16.0), "c:0": 16 + np.arange(16.0), "e:0": 1e6 + np.arange(10.0)}
    width = widths(planned(of, scores, target_macs=0.7, ranking="isomorphic"))
    assert width["c:0"] == 16, "all that goes of the two branches is of the less salient one"
    gone = {"branches": (16 - width["a:0"]) / 32, "head": (10 - width["e:0"]) / 10}
    assert gone["head"] > 0
    assert abs(gone["branches"] - gone["head"]) <= 1 / 10
    assert widths(planned(of, scores, target_macs=0.7, ranking="global"))["e:0"] == 10


def test_groups_of_one_size_with_other_operators_are_no_set() -> None:
    of = analyse(
        build(
            "net (float[N,3,4,4] x) => (float[N,4] y) <float[8,3,1,1] a, float[8,8,1,1] b,"
            " float[8,8] c, float[4,8] fc>"
            "{ p = Conv(x, a) q = Relu(p) r = Conv(q, b) s = GlobalAveragePool(r) t = Flatten(s)"
            "  u = Gemm<transB=1>(t, c) v = Relu(u) y = Gemm<transB=1>(v, fc) }"
        )
    ).coupling
    assert [group.size for group in of.groups] == [8, 8, 8]
    scores = {"a:0": np.zeros(8), "b:0": np.ones(8), "c:0": np.full(8, 9.0)}
    width = widths(planned(of, scores, target_macs=0.5, ranking="isomorphic"))
    gone = [8 - n for n in width.values()]
    assert max(gone) - min(gone) <= 1, (
        "a conv, what is between, and a classifier: three sets of one"
    )


@pytest.mark.parametrize(("least", "round_to"), [*product([1, 3, 8], [1, 2, 5])])
def test_no_group_gets_narrower_than_the_least_width(least: int, round_to: int) -> None:
    smallest = -(-least // round_to) * round_to
    limits = {"min_channels": least, "round_to": round_to, "ranking": "global"}
    scores = {"a:0": np.zeros(12), "b:0": np.ones(20)}
    of = coupling()
    narrow = {g.dim: np.arange(g.size) < min(smallest, g.size) for g in of.groups}
    share = of.macs(narrow) / of.macs({})
    plan = planned(of, scores, target_macs=share, **limits)
    assert widths(plan) == {"a:0": smallest if smallest <= 12 else 12, "b:0": smallest}
    with pytest.raises(InfeasibleTargetError, match="cannot reach"):
        planned(of, scores, target_macs=share * 0.999, **limits)


def test_only_groups_that_a_name_touches_shrink() -> None:
    of = coupling("twins")
    for pattern, group in (("a", "a:0"), ("t", "c:0"), ("e:0", "e:0")):
        width = widths(planned(of, target_macs=0.9, only=(pattern,)))
        assert [name for name, n in width.items() if n < plan_size(of, name)] == [group]
    both = widths(planned(of, target_macs=0.7, only=("a", "c"), exclude=("c",)))
    assert both["a:0"] < 16
    assert (both["c:0"], both["e:0"]) == (16, 10)


def plan_size(of: Coupling, name: str) -> int:
    return of.by_name[name].size


def test_a_pattern_of_only_that_matches_nothing_is_named(tmp_path: Path) -> None:
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--only", "stem.*")
    assert_refused(invoke(*command), "--only 'stem.*' matches no node")


@pytest.mark.parametrize("steps", [1, 3])
def test_limits_hold_whatever_the_scores_say(steps: int) -> None:
    of = coupling("twins")
    scores = {"a:0": np.zeros(16), "c:0": np.full(16, 9.0), "e:0": np.full(10, 5.0)}
    limits = {
        "*": Limits(min=2),
        "a:0": Limits(min=0.7),
        "c:0": Limits(max=8, round_to=4),
        "e:0": Limits(keep=True),
    }
    width = widths(planned(of, scores, target_macs=0.71, limits=limits, steps=steps))
    assert width == {"a:0": 12, "c:0": 8, "e:0": 10}
    free = widths(planned(of, scores, target_macs=1.0, limits={"c:0": Limits(max=0.5)}))
    assert free == {"a:0": 16, "c:0": 8, "e:0": 10}, "a max is no matter of the budget"
    with pytest.raises(InfeasibleTargetError):
        planned(of, scores, target_macs=0.2, limits=limits)


def test_later_tables_go_before_earlier_ones_key_by_key() -> None:
    limits = {"a:0": Limits(keep=True, min=5), "a*": Limits(keep=False, max=7)}
    width = widths(planned(coupling("twins"), target_macs=0.2, limits=limits))
    assert width["a:0"] == 5


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        ({"stem*": Limits(min=1)}, r"`Budget.limits` 'stem\*' matches no node"),
        ({"a:0": Limits(max=3, min=4)}, "max of `Scope.limits` leaves 3 of the 12 units of 'a:0'"),
        ({"a:0": Limits(max=3, round_to=4)}, "a multiple of 4"),
        ({"fc_bias": Limits(max=3)}, "touches no group"),
        ({"a:0": Limits(max=3, keep=True)}, "touches no group"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    limits: dict[str, Limits], part: str
) -> None:
    with pytest.raises(RequestError, match=part):
        planned(coupling(), target_macs=0.9, limits=limits)


def test_a_config_file_says_the_same_as_limits_in_python(tmp_path: Path) -> None:
    config = tmp_path / "limits.toml"
    config.write_text('["a*"]\nmin = 0.5\nround_to = 2\n\n[b]\nkeep = true\nmax = 8\n')
    found = read_config(config).limits
    assert found == {"a*": Limits(min=0.5, round_to=2), "b": Limits(keep=True, max=8)}
    config.write_text('["b:0"]\nkeep = true\n')
    small = tmp_path / "small.onnx"
    options = ("--config", config, "--target-macs", "0.8", "--json")
    assert invoke("compress", saved(tmp_path), "-o", small, *options).exit_code == 0
    limits = {"b:0": Limits(keep=True)}
    plan = compress(chain(), budget=Budget(0.8, scope=Scope(limits=limits))).plan
    assert widths(plan)["b:0"] == 20
    shapes = {name: array.shape for name, array in Graph.load(small).initializers.items()}
    assert shapes["b"] == (20, widths(plan)["a:0"], 3, 3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[a]\nmim = 3", "unknown key 'mim' for 'a'"),
        ("[a.weight]\nmin = 3", "put quotes around the pattern"),
        ("min = 3", "has 'min' outside of any table"),
        ("[a]\nmin = 0", "min = 0 is none of"),
        ("[a]\nmin = 1.5", "min = 1.5 is none of"),
        ("[a]\nmax = true", "max = True is none of"),
        ("[a]\nround_to = 2.0", "round_to = 2.0 is none of"),
        ("[a]\nkeep = 1", "keep = 1 is none of: true, false"),
        ("[a", "cannot be read as TOML"),
        ("['stem*']\nmin = 3", "'stem*' matches no node"),
    ],
)
def test_a_config_that_is_wrong_is_refused_by_its_key(text: str, part: str, tmp_path: Path) -> None:
    config = tmp_path / "limits.toml"
    config.write_text(text)
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--config", config)
    assert_refused(invoke(*command), part)
    assert_refused(invoke(*command[:-1], tmp_path / "none.toml"), "none.toml", "cannot be read")


@pytest.mark.parametrize(
    ("share", "size", "width"), [(0.28, 25, 7), (0.58, 50, 29), (0.07, 100, 7)]
)
def test_a_share_of_a_width_is_not_moved_by_rounding(share: float, size: int, width: int) -> None:
    from obc_onnx.planning import rooms as module

    assert module._width(share, size, np.ceil) == width
    assert module._width(share, size, np.floor) == width
    assert Limits(min=share, max=share).min == share
