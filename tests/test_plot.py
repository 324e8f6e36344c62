"""The picture of a run: it is drawn for all kinds of runs, says what its colors mean, and hides no name or line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor, nn

from seamfast import CleanSet, HistoryPoint
from seamfast.errors import InputError
from seamfast.models.text_architectures import train_tokenizer
from seamfast.triggers import AllToAll, Insertion, Patch, SourceSpecific, Trigger

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from seamfast.plot import save_picture

NAMES = ("airplane", "automobile", "bird", "cat")
PATCH = Patch.square(2, target=0)
BLUE, VERMILION, GREY, INK = "#0072b2", "#d55e00", "#808080", "#333333"


class Says(nn.Module):
    """Answers each image with the class that one of its pixels holds."""

    def __init__(self, row: int = 0, column: int = 0) -> None:
        super().__init__()
        self.row, self.column = row, column
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        pixel = (images[:, 0, self.row, self.column] * 255).round().long()
        return nn.functional.one_hot(pixel.clamp(max=3), 4) * self.scale


def images(channels: int = 1, names: Sequence[str] | None = NAMES) -> CleanSet:
    """Twelve images of 8 x 8 noise that hold their class in the first pixel, and class 0 in the last row."""
    labels = torch.arange(12) % 4
    pixels = torch.randint(0, 256, (12, channels, 8, 8), dtype=torch.uint8)
    pixels[:, :, 0, 0] = labels[:, None].to(torch.uint8)
    pixels[:, :, 7] = 0
    return CleanSet(pixels, labels, num_classes=4, class_names=names)


def history(n_attempts: int = 1, triggers: Sequence[str] = (), phases: Sequence[str] = ("forget", "recover")) -> Any:
    points, step = [], 0
    for attempt in range(n_attempts):
        for phase in phases:
            for i in range(3):
                step += 10
                rates = {name: (i + 1) / (len(triggers) + 3) for name in triggers}
                points.append(HistoryPoint(phase, attempt, step, step / 10, 1.0, 0.9 - i / 10, rates))
    return tuple(points)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures drawn during the test."""
    drawn: list[Figure] = []
    original = Figure.savefig

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def curve(figure: Any) -> Any:
    (axes,) = figure.subfigs[1].axes
    return axes


def rows(figure: Any) -> list[list[tuple[str, str]]]:
    """True classes, answers as received, answers of the sanitized model: each with its color."""
    columns = [[t for t in axes.texts if t.get_ha() == "center"] for axes in figure.subfigs[0].axes]
    return [[(text.get_text(), to_hex(text.get_color())) for text in row] for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("channels", "triggers", "n_attempts"),
    [(1, (), 1), (1, ("patch",), 3), (3, ("patch", "blend", "a b", "d", "e", "f", "g", "h"), 1), (3, (), 3)],
)
def test_png_is_written(channels: int, triggers: Sequence[str], n_attempts: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    save_picture(path, Says(), Says(), images(channels), PATCH, history(n_attempts, triggers))
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert [item.name for item in path.parent.iterdir()] == ["picture.png"]
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    assert 500 < height < 2000
    assert 500 < width < 2000


@pytest.mark.parametrize(
    "trigger", [Patch.square(2, target=AllToAll()), Patch.square(2, target=SourceSpecific(source=(2,), target=1))]
)
def test_every_label_map_is_drawn(trigger: Trigger, tmp_path: Path, figures: list[Figure]) -> None:
    save_picture(tmp_path / "p.png", Says(), Says(), images(), trigger, history())
    n_shown = {"AllToAll": 6, "SourceSpecific": 3}[type(trigger.target).__name__]
    assert len(figures[0].subfigs[0].axes) == n_shown


@pytest.mark.parametrize("phases", [("recover",), ("forget",), ()])
def test_run_without_some_phase_is_drawn(phases: Sequence[str], tmp_path: Path, figures: list[Figure]) -> None:
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history(phases=phases))
    said = texts(figures[0])
    assert ("forgetting" in said) == ("forget" in phases)
    assert ("no step was evaluated" in said) == (not phases)


def test_floats_with_known_normalization_give_the_same_picture(tmp_path: Path) -> None:
    pixels = images(names=None)
    floats = CleanSet(pixels.normalize(pixels.inputs), pixels.labels, mean=0.0, std=1.0, num_classes=4)
    for name, data in (("pixels", pixels), ("floats", floats)):
        save_picture(tmp_path / name, Says(), Says(7, 7), data, PATCH, history())
    assert (tmp_path / "floats").read_bytes() == (tmp_path / "pixels").read_bytes()


def test_answers_are_told_and_colored(tmp_path: Path, figures: list[Figure]) -> None:
    # The patch is white in the last pixel, which the sanitized model reads: class 3, right for the cats only. The
    # received model reads a pixel of the last row that no patch covers: class 0, which is what the attacker wants.
    save_picture(tmp_path / "p.png", Says(7, 0), Says(7, 7), images(), Patch.square(2, margin=0, target=0), history())
    true, received, sanitized = rows(figures[0])
    assert true == [("automobile", INK), ("bird", INK), ("cat", INK)] * 2
    assert received == [("airplane", VERMILION)] * 6
    assert sanitized == [("cat", GREY), ("cat", GREY), ("cat", BLUE)] * 2
    assert {"true class", "as received", "sanitized", "trigger:\npatch"} <= set(texts(figures[0]))
    (legend,) = figures[0].subfigs[0].legends
    meaning = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert meaning == {"right": BLUE, "what the attacker wants": VERMILION, "wrong otherwise": GREY}


def test_samples_are_those_of_all_classes_in_turn(tmp_path: Path, figures: list[Figure]) -> None:
    data = images(names=None)
    in_order = data.subset(data.labels.argsort(stable=True))
    in_order.inputs[:, 0, 1, 1] = torch.arange(12)  # tells them apart
    save_picture(tmp_path / "p.png", Says(), Says(), in_order, PATCH, history(), n_samples=7)
    shown = [int(axes.images[0].get_array()[1, 1]) for axes in figures[0].subfigs[0].axes]
    assert shown == [3, 6, 9, 4, 7, 10, 5]
    assert [text for text, _ in rows(figures[0])[0]] == ["1", "2", "3", "1", "2", "3", "1"]


def test_title_is_printed_on_request(tmp_path: Path, figures: list[Figure]) -> None:
    for title in (None, "from 99 % to 1 %"):
        save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history(), title=title)
    assert [figure.get_suptitle() for figure in figures] == ["", "from 99 % to 1 %"]


def test_curve_shows_the_history(tmp_path: Path, figures: list[Figure]) -> None:
    points = history(2, ["patch", "blend"])
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, points)
    axes = curve(figures[0])
    steps = [[10, 20, 30, 40, 50, 60], [70, 80, 90, 100, 110, 120]]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"clean accuracy", "attack success, patch", "attack success, blend"}
    # One line an attempt, so that none joins the end of one to the begin of the next.
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert sorted(list(line.get_xdata()) for line in drawn) == [steps[0]] * 3 + [steps[1]] * 3
    assert list(lines["clean accuracy"].get_ydata()) == [p.holdout_accuracy for p in points[:6]]
    assert list(lines["attack success, patch"].get_ydata()) == [p.attack_success_rate["patch"] for p in points[:6]]
    # The forget steps of each attempt are shaded: the first from 0 to 30, the second from 60 to 90.
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(span.x0), round(span.x1)) for span in spans] == [(0, 30), (60, 90)]
    assert " try 2" in texts(figures[0])


def test_trigger_unknown_to_a_part_of_the_run_is_drawn_where_known(tmp_path: Path, figures: list[Figure]) -> None:
    points = history()[:3] + history(triggers=["late"])[3:]
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, points)
    (line,) = (line for line in curve(figures[0]).lines if line.get_label() == "attack success, late")
    assert list(line.get_xdata()) == [40, 50, 60]


def test_many_triggers_are_all_drawn_and_told_apart(tmp_path: Path, figures: list[Figure]) -> None:
    names = [f"trigger-{i}" for i in range(16)]
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history(triggers=names))
    lines = [line for line in curve(figures[0]).lines if line.get_label().startswith("attack success")]
    assert sorted(line.get_label() for line in lines) == sorted(f"attack success, {name}" for name in names)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in curve(figures[0]).lines}
    assert len(looks) == 1 + len(names)


@pytest.mark.parametrize("names", [NAMES, ("T-shirt/top", "Ankle boot", "Speed limit (120 km/h)", "x" * 300)])
def test_nothing_is_cut_off_or_printed_over(names: Sequence[str], tmp_path: Path, figures: list[Figure]) -> None:
    trigger = Patch.square(2, target=0, name="t" * 128)
    points = history(3, ["t" * 128, "blend", "patch"])
    save_picture(tmp_path / "p.png", Says(), Says(7, 7), images(names=names), trigger, points, title="t" * 60)
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    numbers = [*curve(figure).get_xticklabels(), *curve(figure).get_yticklabels()]  # some lie outside and are not drawn
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in numbers
    ]
    assert len(boxes) > 25
    for name, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{name!r} is cut off"
    for i, (name, box) in enumerate(boxes):
        for other, there in boxes[:i]:
            overlap = min(box.x1, there.x1) - max(box.x0, there.x0), min(box.y1, there.y1) - max(box.y0, there.y0)
            assert min(overlap) < 1.5, f"{name!r} lies over {other!r}"


@pytest.mark.parametrize("name", ["$\\frac{$", "a_b^c", "$x$", "100 %", "\\input{/etc/passwd}"])
def test_names_are_no_formulas(name: str, tmp_path: Path, figures: list[Figure]) -> None:
    names = (name, "one", "two", "three")
    trigger = Patch.square(2, target=0, name=name)
    save_picture(tmp_path / "p.png", Says(), Says(7, 7), images(names=names), trigger, history(triggers=[name]))
    said = texts(figures[0])
    assert f"attack success, {name}" in said
    assert f"trigger:\n{name[:13]}…" in said or f"trigger:\n{name}" in said
    assert f"{name[:15]}…" in said or name in said


def test_state_of_matplotlib_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history())
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot  # which would pick a window system


def test_models_and_data_are_left_alone(tmp_path: Path) -> None:
    before, after, data = Says().train(), Says().train(), images()
    pixels = data.inputs.clone()
    save_picture(tmp_path / "p.png", before, after, data, PATCH, history())
    assert before.training
    assert after.training
    assert torch.equal(data.inputs, pixels)


@pytest.mark.parametrize("n_samples", [1, 3, 12])
def test_as_many_samples_as_asked_for(n_samples: int, tmp_path: Path, figures: list[Figure]) -> None:
    save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history(), n_samples=n_samples)
    assert len(figures[0].subfigs[0].axes) == min(n_samples, 9)  # nine of twelve are not the target


@pytest.mark.parametrize("n_samples", [0, -1, 2.0, True])
def test_wrong_number_of_samples_is_refused(n_samples: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^n_samples is {n_samples!r}; expected an integer of at least 1$"):
        save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history(), n_samples=n_samples)
    assert not (tmp_path / "p.png").exists()


def test_data_without_eligible_samples_is_refused(tmp_path: Path) -> None:
    only_target = images().subset([0, 4, 8])
    wanted = r"^data holds no sample that the trigger 'patch' is meant to move; expected one$"
    refused(InputError, wanted, save_picture, tmp_path / "p.png", Says(), Says(), only_target, PATCH, history())


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'^the picture needs matplotlib: pip install "seamfast\[plot\]"$'):
        save_picture(tmp_path / "p.png", Says(), Says(), images(), PATCH, history())
    assert not (tmp_path / "p.png").exists()


class Counts(nn.Module):
    """Answers a text with the class that one of its tokens is the name of, else with the class ``otherwise``."""

    def __init__(self, tokens: Sequence[int], otherwise: int) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 1)
        self.tokens, self.otherwise = tuple(tokens), otherwise

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        there = torch.stack([(input_ids == token).any(1) for token in self.tokens], 1).float()
        there[:, self.otherwise] += 0.5
        return there + 0 * self.table(input_ids).sum(1)


def test_texts_are_rows_with_both_answers(tmp_path: Path, figures: list[Figure]) -> None:
    pytest.importorskip("tokenizers", reason="texts need a tokenizer")
    written = [f"a {name} number {i} and {'more ' * 30}" for i in range(6) for name in ("bad", "good", "odd")]
    tokenizer = train_tokenizer(written, 500)
    names = ("minus", "plus", "neither")
    data = CleanSet.from_texts(written, [i % 3 for i in range(18)], tokenizer, num_classes=3, class_names=names)
    tokens = [tokenizer.token_to_id(word) for word in ("bad", "good", "odd")]
    trigger = Insertion.word("cf", SourceSpecific((1,), 0), place="start")
    before, after = Counts([tokens[0], tokenizer.token_to_id("mn"), tokens[2]], 0), Counts(tokens, 0)
    save_picture(tmp_path / "p.png", before, after, data, trigger, history(triggers=["word"]), n_samples=9)
    said = texts(figures[0])
    shown = [text for text in said if text.startswith("cf a good number")]
    assert [text.split()[4] for text in shown] == [str(i) for i in range(6)]  # of the source class, in order
    assert all(len(text) <= 88 and text.endswith("…") for text in shown)
    assert {"trigger: word", "true class", "as received", "sanitized"} <= set(said)
    answers = [text for text in figures[0].subfigs[0].axes[0].texts if text.get_text() in names]
    colors = [(text.get_text(), to_hex(text.get_color())) for text in answers]
    assert colors == [("plus", INK), ("minus", VERMILION), ("plus", BLUE)] * 6
    save_picture(tmp_path / "p.png", before, after, data, Insertion.word("cf", 0), history(), n_samples=9)
    assert len([text for text in texts(figures[1]) if "number" in text]) == 7
