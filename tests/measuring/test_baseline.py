"""What a report says of its measurement: what was fed, on how many samples, and what is in doubt.

The model gives back its input as class scores, so that every accuracy and confidence is set by hand.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build
from PIL import Image
from scipy.stats import binomtest
from small import CHAIN, archive, classes, images, invoke, saved

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.measuring import baseline
from obc_onnx.measuring.baseline import FEW_SAMPLES, Fed, examine
from obc_onnx.measuring.outputs import Outputs
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import check_samples, known_by, load_samples, open_samples
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_CLASSES = 4
SCORES = Graph.from_model(
    build(f"net (float[N,{N_CLASSES}] x) => (float[N,{N_CLASSES}] y) {{ y = Identity(x) }}")
)


def answering(
    given: NDArray[np.int64], labels: NDArray[np.int64] | None, certainty: float = 0.9
) -> Samples:
    """Make samples for which the model gives chosen answers with a chosen probability."""
    scores = np.full((len(given), N_CLASSES), (1 - certainty) / (N_CLASSES - 1))
    scores[np.arange(len(given)), given] = certainty
    return Samples({"x": scores.astype(np.float32)}, labels, {"x": np.dtype(np.float32)})


def even(n_samples: int) -> NDArray[np.int64]:
    """Return labels of which each class has its share."""
    return np.arange(n_samples) % N_CLASSES


def doubts(held: Samples, used: Samples | None = None, graph: Graph = SCORES) -> list[str]:
    return examine(Outputs(graph, held), held if used is None else used, apart=False).doubts


def right_on(n_right: int, n_samples: int) -> NDArray[np.int64]:
    """Return answers of which the first so many equal the label of `even`, and all are spread."""
    labels = even(n_samples)
    return np.where(np.arange(n_samples) < n_right, labels, (labels + 1) % N_CLASSES)


def test_a_model_that_is_mostly_right_is_not_doubted() -> None:
    assert doubts(answering(right_on(180, 200), even(200))) == []


@pytest.mark.parametrize("n_samples", [100, 400, 2000])
def test_chance_is_told_by_an_exact_test(n_samples: int) -> None:
    for n_right in range(n_samples // 4 - 5, n_samples // 2, 3):
        found = doubts(answering(right_on(n_right, n_samples), even(n_samples), 0.3))
        luck = binomtest(n_right, n_samples, 1 / N_CLASSES, alternative="greater").pvalue
        assert bool(found) == (luck >= 0.01), (n_right, luck)


def test_naming_the_commonest_class_is_chance_too() -> None:
    labels = np.r_[np.zeros(150, np.int64), even(50)]
    (found,) = doubts(answering(np.zeros(200, np.int64), labels, 0.3))
    assert "right on 81.50 %" in found
    assert "no better than chance, 81.50 %" in found
    assert "100 % of them class 0" in found
    assert "it was fed 'x' 0.2333 to 0.3" in found


def test_answers_of_all_classes_let_labels_be_doubted() -> None:
    labels = even(400)
    (found,) = doubts(answering(labels, np.random.default_rng(0).permutation(labels)))
    assert "likely the labels are shuffled or number the classes in another order" in found


@pytest.mark.parametrize(("n_right", "certainty", "doubted"), [
    (140, 0.99, True), (140, 0.90, False), (190, 0.99, False), (140, 0.3, False),
])  # fmt: skip
def test_a_model_that_is_far_surer_than_right_is_doubted(
    n_right: int, certainty: float, doubted: bool
) -> None:
    found = doubts(answering(right_on(n_right, 200), even(200), certainty))
    assert bool(found) == doubted
    assert all("right on 70.00 %" in text and "on 99.00 %" in text for text in found)


def test_scores_that_are_no_probabilities_are_logits() -> None:
    scores = np.zeros((200, N_CLASSES), np.float32)
    scores[np.arange(200), right_on(100, 200)] = np.log(27)  # exp: 27 to 3, so 90 %
    held = Samples({"x": scores}, even(200), {"x": np.dtype(np.float32)})
    (found,) = doubts(held)
    assert "right on 50.00 %" in found
    assert "on 90.00 %" in found


@pytest.mark.parametrize(
    ("n_samples", "number"), [(1, "1 held-out sample,"), (99, "99 held-out s")]
)
def test_few_samples_are_said_to_be_few(n_samples: int, number: str) -> None:
    (found,) = doubts(answering(even(n_samples), even(n_samples)))
    assert number in found
    assert f"one is worth {100 / n_samples:.3g} points" in found
    assert doubts(answering(even(FEW_SAMPLES), even(FEW_SAMPLES))) == []


def test_a_single_class_tells_nothing() -> None:
    held = answering(np.full(200, 2), np.full(200, 2))
    (found,) = doubts(held)
    assert "all 200 held-out samples are of class 2" in found


def test_classes_that_one_part_lacks_are_named() -> None:
    held, used = answering(even(200) // 2, even(200) // 2), answering(even(400), even(400))
    (found,) = doubts(held, used)
    assert "the held-out samples (200) hold none of classes 2, 3, which" in found
    (found,) = doubts(used, held)
    assert "the samples to score, repair and train on (200) hold none of classes 2, 3" in found


def test_one_answer_without_labels_is_doubted_where_the_model_gives_probabilities() -> None:
    given = np.full(200, 3)
    (found,) = doubts(answering(given, None))
    assert "the original gives all 200 held-out samples class 3" in found
    assert doubts(answering(even(200), None)) == []
    logits = Samples({"x": 5 * answering(given, None).inputs["x"][:]}, None, {"x": np.dtype("f4")})
    assert doubts(logits) == [], "they may be anything, such as an embedding"


def test_models_without_classes_are_not_doubted() -> None:
    graph = Graph.from_model(build("net (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu(x) }"))
    held = Samples({"x": images(200)[:, :, :4, :4]}, None, {"x": np.dtype(np.float32)})
    assert doubts(held, graph=graph) == []


def test_what_is_fed_is_described_as_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_LOOKED_AT", 150)
    x = np.random.default_rng(0).normal(3, 2, (200, N_CLASSES)).astype(np.float32)
    held = Samples({"x": x}, None, {"x": np.dtype(np.float32)})
    (fed,) = examine(Outputs(SCORES, held), held, apart=False).fed
    assert (fed.name, fed.n_samples, fed.dtype, fed.shape) == ("x", 150, "float32", [N_CLASSES])
    wide = x[:150].astype(np.float64)
    expected = (wide.min(), wide.max(), wide.mean(), wide.std())
    assert (fed.least, fed.greatest, fed.mean, fed.std) == pytest.approx(expected)
    assert fed.preparation == ""
    other = Samples({"x": x + 5}, None, {"x": np.dtype(np.float32)})
    both = examine(Outputs(SCORES, held), other, apart=True).fed
    assert [one.samples for one in both] == [
        "held-out samples",
        "samples to score, repair and train on",
    ]
    assert both[1].least == pytest.approx(both[0].least + 5, rel=1e-5)


ALONE = (
    "net (float[5,6] x, float rate) => (float[1,4] y) <float[6,4] w>"
    "{ m = ReduceMean<axes = [0]>(x) s = Mul(m, rate) y = MatMul(s, w) }"
)
TIME_FIRST = "net (float[T,N,6] x) => (float[T,N,4] y) <float[6,4] w> { y = MatMul(x, w) }"


def test_a_model_of_one_sample_is_fed_and_looked_at_run_by_run() -> None:
    graph = Graph.from_model(build(ALONE))
    x = np.random.default_rng(0).normal(3, 2, (300, 5, 6)).astype(np.float32)
    rate = np.array(0.5, np.float32)
    given = Samples({"x": x, "rate": rate}, even(300), {})
    held = check_samples(given, graph, named={"x": None})
    found = examine(Outputs(known_by(graph, held), held), held, apart=False)
    fed = {one.name: one for one in found.fed}
    assert (fed["x"].shape, fed["x"].n_samples) == ([5, 6], 300)
    wide = x.astype(np.float64)
    assert (fed["x"].mean, fed["x"].std) == pytest.approx((wide.mean(), wide.std()))
    assert (fed["rate"].shape, fed["rate"].least, fed["rate"].std) == ([], 0.5, 0)
    session = Session(graph)
    runs = [session.run({"x": one, "rate": rate})["y"].argmax() for one in x]
    assert found.accuracy == np.mean(np.array(runs) == even(300))


def test_shapes_are_those_of_one_sample_wherever_samples_lie() -> None:
    graph = Graph.from_model(build(TIME_FIRST))
    x = np.random.default_rng(0).standard_normal((7, 150, 6)).astype(np.float32)
    held = check_samples(Samples({"x": x}, None, {}), graph, named={"x": 1})
    (fed,) = examine(Outputs(known_by(graph, held), held), held, apart=False).fed
    assert (fed.shape, fed.n_samples) == ([7, 6], 150)


def test_strings_are_described_without_numbers() -> None:
    fed = Fed("words", "held-out samples", 3, "object", [2], None, None, None, None, "")
    assert fed.values == "'words' no numbers"


def lines(model: Path, folder: Path, *options: Any) -> list[str]:
    command = ("compress", model, "-o", folder / "small.onnx", "--force", "--target-macs", "0.9")
    result = invoke(
        *command, "--criterion", "l2", "--recover", "none", "--no-latency", "-q", *options
    )
    assert result.exit_code == 0, result.output
    return result.stdout.strip().splitlines()


def warnings_of(shown: list[str]) -> list[str]:
    """Return the warnings, which stand before the verdict, the last line."""
    return [line for line in shown if line.startswith("warning: ")]


@pytest.fixture
def pictures(models: Path, tmp_path: Path) -> Path:
    """Test images of a shipped model as files, 60 of each class."""
    samples = np.load(models / "fashion-test.npz")
    for label in range(10):
        place = tmp_path / "pictures" / str(label)
        place.mkdir(parents=True)
        for number, pixels in enumerate(samples["input"][samples["labels"] == label][:60]):
            Image.fromarray(pixels[0]).save(place / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", ["fashion_resnet20", "fashion_mobilenet"])
def test_a_shipped_model_that_is_fed_another_range_is_doubted_to_the_last_line(
    name: str, models: Path, pictures: Path, tmp_path: Path
) -> None:
    model = models / f"{name}.onnx"
    shown = lines(model, tmp_path, "--data", pictures)
    warning, lost = warnings_of(shown)
    assert "channels of output 'logits' lost" in lost
    assert warning.startswith("warning: the original is right on ")
    assert "fed 'input' 0 to 1: see --image-scale" in warning
    assert shown[-1].startswith("doubtful: the original is right on ")
    assert "no better than chance" in shown[-1]
    shown = lines(model, tmp_path, "--data", pictures, "--image-scale", "1")
    assert warnings_of(shown) == []
    assert any("fed: 'input' 0 to 255, float32 of 1 x 28 x 28" in line for line in shown)
    assert any("accuracy on 120 held out, %" in line for line in shown)
    assert shown[-1].startswith("good: ")


def test_shuffled_labels_of_a_shipped_model_are_doubted(models: Path, tmp_path: Path) -> None:
    samples = np.load(models / "fashion-test.npz")
    shuffled = np.random.default_rng(0).permutation(samples["labels"])
    data = archive(tmp_path, input=samples["input"], labels=shuffled)
    shown = lines(models / "fashion_resnet20.onnx", tmp_path, "--data", data)
    (warning,) = warnings_of(shown)
    assert "labels are shuffled" in warning
    assert "no better than chance" in shown[-1]


def test_the_json_holds_what_was_fed_the_number_of_samples_and_the_warnings(
    tmp_path: Path,
) -> None:
    data = archive(tmp_path, x=images(40), labels=classes(40))
    model = saved(tmp_path, CHAIN)
    report = json.loads("\n".join(lines(model, tmp_path, "--data", data, "--json")))
    assert report["held_out"] == 8
    (fed,) = report["fed"]
    assert (fed["name"], fed["n_samples"], fed["shape"]) == ("x", 8, [3, 8, 8])
    assert any("8 held-out samples" in text for text in report["warnings"])
    report = json.loads("\n".join(lines(model, tmp_path, "--json")))
    assert (report["held_out"], report["fed"]) == (0, [])


def test_samples_sorted_by_class_are_not_doubted(tmp_path: Path) -> None:
    labels = np.sort(even(1000))
    data = archive(tmp_path, x=answering(labels, labels).inputs["x"][:], labels=labels)
    used, held = open_samples(DataOptions(data), SCORES)
    assert examine(Outputs(SCORES, held), used, apart=False).doubts == []
    everything = load_samples(data, SCORES)
    last_fifth = everything.part(slice(800, None)), everything.part(slice(0, 800))
    assert doubts(*last_fifth), "as they would be in the order of the file"
