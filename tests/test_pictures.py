"""The pictures: the same bytes each time, and nothing that overlaps or leaves the page."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from explainmyxray.pictures import gallery, plots, training_plots
from explainmyxray.reports.findings import FINDINGS

LONG = "The cardiac silhouette is enlarged, $x_1$ and there is pleural_thickening^2 " * 12 + "w" * 200


@pytest.fixture
def cases(tmp_path):
    sizes = [(224, 224), (448, 300), (90, 120)]
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    known = {"source": "chest_xray_pneumonia", "view": "PA", "age_years": "61", "sex": "F"}
    return pd.DataFrame(
        [
            known
            | {
                "image": "0.png",
                "labels": "Edema|Mass",
                "report": "There is edema. A mass.",
                "generated": "Edema.",
            },
            known
            | {
                "image": "1.png",
                "labels": "No Finding",
                "report": "Clear lungs.",
                "generated": LONG,
                "view": "",
            },
            known
            | {
                "image": "2.png",
                "labels": "|".join(FINDINGS),
                "report": LONG,
                "generated": "",
                "age_years": "",
            },
        ]
    )


PREDICTED = [frozenset({"Edema"}), frozenset({"Effusion"}), frozenset()]


def draw(cases, folder, name="gallery.png", n=3):
    gallery.draw_gallery(cases, PREDICTED, [0, 1, 2], folder, folder / name, n)
    return (folder / name).read_bytes()


def test_gallery_has_the_same_bytes_each_time_and_the_width_of_a_readme(cases, tmp_path):
    assert draw(cases, tmp_path) == draw(cases, tmp_path, "again.png")
    with Image.open(tmp_path / "gallery.png") as image:
        assert image.width == 1000 and not image.info.get("Software")


@pytest.fixture
def written(monkeypatch):
    """What the gallery writes, as it does: (text, its box on the page)."""
    texts = []
    draw_text = ImageDraw.ImageDraw.text

    def record(drawing, place, text, fill, font):
        texts.append((text, drawing.textbbox(place, text, font)))
        return draw_text(drawing, place, text, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def test_nothing_in_the_gallery_overlaps_or_leaves_the_page(cases, tmp_path, written, monkeypatch):
    xrays = []
    paste = Image.Image.paste

    def record(page, image, place):
        if page.width == gallery.WIDTH:
            xrays.append((*place, place[0] + image.width, place[1] + image.height))
        return paste(page, image, place)

    monkeypatch.setattr(Image.Image, "paste", record)
    draw(cases, tmp_path)
    with Image.open(tmp_path / "gallery.png") as image:
        width, height = image.size
    boxes = [box for text, box in written if text] + xrays
    assert len(xrays) == 3
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        for other_left, other_top, other_right, other_bottom in boxes[:number]:
            overlap_x = min(right, other_right) - max(left, other_left)
            overlap_y = min(bottom, other_bottom) - max(top, other_top)
            assert min(overlap_x, overlap_y) <= 0


def test_gallery_says_what_it_is_not_and_marks_what_it_shows(cases, tmp_path, written):
    draw(cases, tmp_path)
    texts = [text for text, _ in written]
    everything = "\n".join(texts)
    for words in ("not a medical device", "synthetic", "research and teaching", "Pleural Thickening"):
        assert words in everything
    assert {"✓ found: Edema", "✗ missed: Mass", "+ invented: Effusion"} <= set(texts)
    assert {"Reference · best case", "Reference · median case", "Reference · worst case"} <= set(texts)
    assert texts[texts.index("chest_xray_pneumonia") + 1] == "PA · 61 years · F"


def test_the_pixels_of_an_xray_are_shown_as_they_are(cases, tmp_path):
    draw(cases, tmp_path)
    with Image.open(tmp_path / "gallery.png") as image:
        left, top = gallery.MARGIN, gallery.HEAD
        shown = np.asarray(image.convert("L"))[top : top + 224, left : left + 224]
    with Image.open(tmp_path / "0.png") as image:
        assert (shown == np.asarray(image)).all()


def test_choose_takes_the_ends_and_the_middle_and_no_row_twice():
    assert gallery.choose(range(9), 3) == [("best", 0), ("median", 4), ("worst", 8)]
    assert gallery.choose(range(9), 1) == [("median", 4)]
    for n in range(1, 9):
        rows = [row for _, row in gallery.choose(range(5), n)]
        assert rows == sorted(set(rows)) and len(rows) == min(n, 5)


def test_outcomes_name_what_was_found_missed_and_invented():
    named = gallery.outcomes(frozenset({"Mass", "Edema"}), frozenset({"Mass", "Hernia"}))
    assert named == {"found": ["Mass"], "missed": ["Edema"], "invented": ["Hernia"]}
    assert gallery.outcomes(frozenset(), frozenset()) == {"found": ["No Finding"]}


def test_wrap_keeps_the_words_and_the_width():
    text = "There is enlargement of the cardiac silhouette. " * 3
    lines = gallery.wrap(text, 200, 99)
    assert " ".join(lines) == text.strip()
    assert all(gallery.font().getlength(line) <= 200 for line in lines)
    assert "".join(gallery.wrap("w" * 90, 100, 99)) == "w" * 90
    assert gallery.wrap("", 100, 99) == ["(nothing)"]
    cut = gallery.wrap(text, 200, 2)
    assert len(cut) == 2 and cut[-1].endswith("…") and cut[0] == lines[0]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as matplotlib has them."""
    saved = []

    def save(figure, path, **_):
        saved.append(figure)
        path.write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def findings_rows(**support):
    rows = pd.DataFrame({"finding": FINDINGS, "f1": 0.5, "low": 0.25, "high": 1.0, "support": 12})
    rows["support"] = [support.get(name, 12) for name in FINDINGS]
    return rows


def systems_rows():
    return pd.DataFrame(
        [
            {"system": system, "figure": figure, "value": 0.5 * scale, "low": 0.0, "high": 1.0 * scale}
            for system in plots.LABELS
            for figure, (_, scale) in plots.PANELS.items()
        ]
    )


@pytest.mark.parametrize(
    "plot, rows", [(plots.plot_findings, findings_rows()), (plots.plot_systems, systems_rows())]
)
def test_plots_have_the_same_bytes_each_time_whatever_the_matplotlibrc(plot, rows, tmp_path):
    import matplotlib

    plot(rows, tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        plot(rows, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "plot, rows", [(plots.plot_findings, findings_rows()), (plots.plot_systems, systems_rows())]
)
def test_plot_labels_stay_on_the_page(plot, rows, tmp_path, figures):
    plot(rows, tmp_path / "a.png")
    tight, page_box = figures[0].get_tightbbox(), figures[0].bbox_inches
    assert (
        page_box.x0 <= tight.x0
        and tight.x1 <= page_box.x1
        and page_box.y0 <= tight.y0
        and tight.y1 <= page_box.y1
    )


def test_a_finding_that_no_image_has_gets_no_dot(tmp_path, figures):
    plots.plot_findings(findings_rows(Hernia=0), tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert len(axes.collections[1].get_offsets()) == 13
    assert [text.get_text() for text in axes.texts].count("no image has it") == 1


# --- training, split and confusion ---


@pytest.fixture
def curves(tmp_path):
    """DVCLive's tables of a run that was validated twice."""
    steps = pd.DataFrame({"step": [5, 10, 15, 20], "train_loss": [9.0, 3.0, 1.0, 0.8], "learning_rate": 1e-4})
    steps[["step", "train_loss"]].to_csv(tmp_path / "train_loss.tsv", sep="\t", index=False)
    steps[["step", "learning_rate"]].to_csv(tmp_path / "learning_rate.tsv", sep="\t", index=False)
    validations = {"eval_loss": [2.0, 0.9], "findings_f1": [0.5, 0.75], "majority_f1": [0.25, 0.25]}
    for name, values in validations.items():
        table = pd.DataFrame({"step": [10, 20], name: values})
        table.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False)
    return tmp_path


def test_curves_show_each_loss_at_its_steps(curves, tmp_path, figures):
    training_plots.plot_curves(curves, tmp_path / "curves.png")
    losses, f1, rates = figures[0].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert drawn["eval_loss"] == [[10, 2.0], [20, 0.9]] and len(drawn["train_loss"]) == 4
    assert [line.get_label() for line in rates.lines] == ["learning_rate"]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in f1.lines}
    assert drawn == {"findings_f1": [0.5, 0.75], "majority_f1": [0.25, 0.25]}


def test_curves_of_a_run_without_validation_are_drawn_without_one(curves, tmp_path, figures):
    (curves / "eval_loss.tsv").unlink()
    training_plots.plot_curves(curves, tmp_path / "curves.png")
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["train_loss"]


def test_labels_show_every_label_that_occurs_in_each_split(tmp_path, figures):
    rows = [("train", "Mass", "80"), ("val", "Mass", "9"), ("test", "Mass", "10"), ("train", "Hernia", "0")]
    training_plots.plot_labels(
        pd.DataFrame(rows, columns=["split", "label", "count"]), tmp_path / "labels.png"
    )
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Mass"]
    assert [text.get_text() for text in axes.texts] == ["80", "9", "10"]


def test_confusion_counts_what_was_written_for_what(tmp_path, figures):
    pairs = [("Mass", "Mass"), ("Mass", "Mass"), ("Mass", "Nodule"), ("nothing", "Edema")]
    frame = pd.DataFrame(pairs, columns=["actual", "predicted"])
    training_plots.plot_confusion(frame, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Edema", "Mass", "Nodule", "nothing"]
    cells = {(names[text._y], names[text._x]): text.get_text() for text in axes.texts}
    assert cells == {("Mass", "Mass"): "2", ("Mass", "Nodule"): "1", ("nothing", "Edema"): "1"}


def test_a_test_split_without_findings_has_its_pictures(tmp_path):
    training_plots.plot_confusion(pd.DataFrame(columns=["actual", "predicted"]), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1_000
