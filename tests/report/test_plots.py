"""Figures and pages: what they hold, what they refuse, and that no name can break them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from facerec.errors import InputError
from facerec.report import html as page
from facerec.report import pages, projections
from tests.helpers.pages import EVIL, HISTORY, Reader, curve, faces

# Training curves


def test_training_curves_hold_the_history():
    figure = pages.training_curves(HISTORY, {"raw pixels": 0.31})
    recall = next(trace for trace in figure.data if trace.name == "Recall@1")
    assert list(recall.x) == [1, 2, 3]
    assert list(recall.y) == [0.2, 0.7, 0.6]
    texts = " ".join(note.text for note in figure.layout.annotations)
    assert "best 0.700" in texts
    assert "raw pixels 0.310" in texts
    assert [shape.y0 for shape in figure.layout.shapes] == [0.31]
    panels = figure.layout.meta["grid"]["panels"]
    assert len(panels) == 4  # validation, loss, lr, triplets


def test_training_curves_leave_gaps_where_there_is_no_number():
    history = [{"epoch": 1, "val/recall_at_1": float("nan"), "train/loss": 1.0}, {"epoch": 2}]
    history.append({"epoch": 3, "val/recall_at_1": 0.5})
    figure = pages.training_curves(history)
    values = {trace.name: list(trace.y) for trace in figure.data}
    assert values == {"Recall@1": [None, None, 0.5], "Training loss": [1.0, None, None]}


@pytest.mark.parametrize("history", [[], [{"epoch": 1}], [{"epoch": 1, "val/recall_at_1": None}]])
def test_training_curves_without_an_epoch_say_so(history):
    assert "No epoch" in pages.training_curves(history).layout.annotations[0].text


def test_training_curves_take_metrics_that_nobody_foresaw():
    history = [{"val/<b>new": 0.3, "train/grad_norm": 2.0, "val/recall_at_1": 0.1}]
    names = [trace.name for trace in pages.training_curves(history).data]
    assert names == ["Recall@1", "&lt;b&gt;new", "train/grad_norm"]


def test_figures_use_palette_colours_only():
    drawn = [
        pages.training_curves(HISTORY, {"raw": 0.1}),
        pages.similarity_histogram(curve([0.5, 0.9], [0.1, 0.2]), {"FAR 0.1": 0.4}),
        pages.roc_curve({"model": curve([0.5, 0.9], [0.1, 0.6])}),
    ]
    known = {pair[0] for pair in page.PALETTE.values()}
    for figure in drawn:
        assert set(re.findall(r"#[0-9a-fA-F]{6}", figure.to_json())) <= known


# Similarities and ROC


def test_similarity_histogram_counts_every_pair_once():
    pairs = curve([0.5, 0.5, 0.9], [0.1, -0.2, 0.6, 0.1])
    figure = pages.similarity_histogram(pairs, {"FAR 0.25": 0.6})
    lines = {trace.name: trace for trace in figure.data if trace.type == "scatter"}
    for name, count in (("Genuine", 3), ("Impostor", 4)):
        assert sum(lines[name].y) == pytest.approx(1)
        assert np.sort(lines[name].y)[-1] == pytest.approx(2 / count)
    assert any("FAR 0.25: 0.600" in note.text for note in figure.layout.annotations)


@pytest.mark.parametrize("far", [-0.9, 0.3])
def test_threshold_labels_are_crossed_by_nothing(far):
    marked = {f"FAR 1e-{n}": far + 0.05 * n for n in range(1, 5)}
    figure = pages.similarity_histogram(curve([0.5, 0.9], [-1, 0.1]), marked)
    labels = [note for note in figure.layout.annotations if note.text.startswith(" FAR")]
    for label in labels:
        beyond = [line for line in figure.layout.shapes if line.y1 > label.y - 0.07]
        towards = -1 if label.xanchor == "right" else 1
        assert all(towards * (line.x0 - label.x) <= 0 for line in beyond)
        peak = max(max(trace.y) for trace in figure.data) / figure.layout.yaxis.range[1]
        assert peak <= label.y - 0.07


def test_roc_goes_through_points_worked_out_by_hand():
    pairs = curve([0.9, 0.8, 0.3], [0.85, 0.2, 0.1, 0.0])
    trace = pages.roc_curve({"model": pairs}).data[0]
    assert list(trace.x) == [0.25, 0.25, 0.25, 0.5, 0.75, 1.0]
    assert list(trace.y) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert list(trace.customdata) == [0.85, 0.8, 0.3, 0.2, 0.1, 0.0]


def test_roc_keeps_its_shape_when_thinned():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.5, 0.2, 3000), rng.normal(0, 0.2, 5000)
    full = curve(genuine[:800], impostor[:1500])
    trace = pages.roc_curve({"model": full}).data[0]
    far = full.false_accepts / full.false_accepts[-1]
    tar = full.true_accepts / full.true_accepts[-1]
    assert len(trace.x) < len(far)
    at = np.searchsorted(np.asarray(trace.x), far, side="right") - 1
    seen = np.append(np.diff(far) > 0, True) & (far > 0)  # the top of each vertical rise
    assert np.abs(np.asarray(trace.y)[at[seen]] - tar[seen]).max() < 0.01


# Numbers behind the map


def test_neighbours_against_a_plain_loop(monkeypatch):
    monkeypatch.setattr(projections, "CHUNK", 7)
    embeddings = projections.normalise(faces()[0])
    index, similarity = projections.neighbours(embeddings, 5)
    for probe in range(len(embeddings)):
        others = [n for n in range(len(embeddings)) if n != probe]
        others.sort(key=lambda n: -float(embeddings[probe] @ embeddings[n]))
        assert list(index[probe]) == others[:5]
        expected = embeddings[others[:5]] @ embeddings[probe]
        assert similarity[probe] == pytest.approx(expected, abs=1e-6)


def test_neighbours_of_two_faces():
    index, _ = projections.neighbours(np.eye(2, dtype=np.float32), 10)
    assert index.tolist() == [[1], [0]]


@pytest.mark.parametrize("chunk", [5, 1024])
def test_extreme_pairs_against_a_plain_loop(monkeypatch, chunk):
    monkeypatch.setattr(projections, "CHUNK", chunk)
    embeddings, labels, *_ = faces(seed=3)
    embeddings = projections.normalise(embeddings)
    genuine, impostor = projections.extreme_pairs(embeddings, labels, count=3)
    pairs = [
        (float(embeddings[a] @ embeddings[b]), a, b)
        for a in range(len(labels))
        for b in range(a + 1, len(labels))
    ]
    for found, kind, sign in ((genuine, True, 1), (impostor, False, -1)):
        used: set[int] = set()
        expected = []
        for _, a, b in sorted(pairs, key=lambda pair: sign * pair[0]):
            if (labels[a] == labels[b]) == kind and not {a, b} & used and len(expected) < 3:
                used |= {a, b}
                expected.append((a, b))
        assert list(zip(found.left, found.right, strict=True)) == expected


def test_extreme_pairs_where_there_are_none():
    embeddings = np.eye(3, dtype=np.float32)
    genuine, impostor = projections.extreme_pairs(embeddings, np.arange(3))
    assert len(genuine.left) == 0
    assert len(impostor.left) == 1
    genuine, impostor = projections.extreme_pairs(embeddings, np.zeros(3, dtype=int))
    assert len(impostor.left) == 0


def test_sample_keeps_whole_people():
    labels = np.random.default_rng(1).permutation(np.repeat([5, 7, 900, 12], 10))
    kept = projections.sample_faces(labels, 20)
    assert len(kept) == 20
    assert sorted(np.unique(labels[kept], return_counts=True)[1]) == [10, 10]
    assert (np.diff(kept) > 0).all()
    assert (projections.sample_faces(labels, 20) == kept).all()
    assert (projections.sample_faces(labels, 100) == np.arange(40)).all()


@pytest.mark.parametrize("count", [2, 3, 4, 6, 40])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_projections_of_few_faces(count, dimensions):
    embeddings = projections.normalise(np.random.default_rng(0).normal(size=(count, 8)))
    assert projections.tsne(embeddings, dimensions).shape == (count, dimensions)
    points, shares = projections.pca(embeddings, dimensions)
    assert points.shape == (count, dimensions)
    assert 0 < shares.sum() <= 1 + 1e-5


@pytest.mark.parametrize("size", [1, 2])
def test_projections_of_tiny_and_equal_embeddings(size):
    assert projections.tsne(np.random.default_rng(0).normal(size=(9, size)), 3).shape == (9, 3)
    assert np.isfinite(projections.tsne(np.ones((9, size), dtype=np.float32), 2)).all()


def test_tsne_is_the_same_twice():
    embeddings = projections.normalise(faces()[0])
    assert (projections.tsne(embeddings, 2) == projections.tsne(embeddings, 2)).all()


def test_occlusion_map_finds_the_only_place_that_matters():
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[8:16, 24:32] = 255

    def embed(pictures: np.ndarray) -> np.ndarray:
        mark = pictures[:, 8:16, 24:32].mean(axis=(1, 2, 3)) / 255
        return np.stack([mark, np.full(len(pictures), 0.1)], axis=1)

    loss = pages.occlusion_map(embed, image, patch=8, stride=8, batch=5)
    assert loss.shape == (4, 6)
    assert np.unravel_index(loss.argmax(), loss.shape) == (1, 3)
    assert loss[1, 3] > 0.1
    loss[1, 3] = 0
    assert np.abs(loss).max() < 1e-6


def test_occlusion_map_refuses_a_patch_that_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        pages.occlusion_map(lambda x: x, np.zeros((8, 8, 3), dtype=np.uint8), patch=9)


# Pages


def test_embedding_map_holds_faces_neighbours_and_views():
    embeddings, labels, names, images = faces()
    data = Reader(pages.embedding_map(embeddings, labels, names, images)).json("page-data")["map"]
    assert data["people"] == [name.replace("_", " ") for name in names]
    assert data["labels"] == labels.tolist()
    near = np.array(data["near"]["index"]).reshape(len(labels), data["near"]["count"])
    assert (labels[near[:, 0]] == labels).all()
    kinds = {(view["method"], view["dimensions"]) for view in data["views"]}
    assert kinds == {("PCA", 2), ("PCA", 3), ("t-SNE", 2), ("t-SNE", 3)}
    for view in data["views"]:
        assert np.array(view["points"]).shape == (view["dimensions"], len(labels))


def test_embedding_map_samples_whole_people_and_says_so():
    text = pages.embedding_map(*faces(people=10), max_faces=12)
    assert len(Reader(text).json("page-data")["map"]["labels"]) == 12
    assert "12 faces of 3 people, drawn at random from 40 faces" in text


def report(names=None, **options) -> str:
    embeddings, labels, known, images = faces(size=40)
    metric = pages.Metric
    metrics = {
        EVIL: {"Recall@1": metric(0.5, 0.4, 0.6), EVIL: metric(None, note=EVIL)},
        "raw pixels": {"Recall@1": metric(0.25)},
    }
    occlusion = pages.Occlusion(images[0], np.array([[0.1, -0.2], [0.0, 0.3]]), EVIL)
    options = {
        "title": EVIL,
        "subtitle": EVIL,
        "notice": EVIL,
        "metrics": metrics,
        "curve": curve([0.5, 0.9], [0.1, 0.6]),
        "thresholds": {EVIL: 0.4},
        "occlusions": [occlusion],
        **options,
    }
    return pages.report_page(
        embeddings, labels, names or [EVIL, *known[1:]], images, **options
    ).page


def test_no_name_breaks_out_of_the_page():
    text = report()
    reader = Reader(text)
    assert "alert(1)" not in "".join(
        body for head, body in reader.scripts if "json" not in head.get("type", "")
    )
    # Two of data, two figures, plotly and the page's own: a name has opened none.
    assert len(reader.scripts) == 6
    assert reader.json("page-data")["map"]["people"][0] == EVIL.strip()
    assert EVIL in "".join(reader.text)
    assert text.isprintable() or "\u2028" not in "".join(body for _, body in reader.scripts[:4])


def test_name_that_is_not_utf_8_can_be_written(tmp_path):
    names = ["caf\udce9", *[f"Person {n}" for n in range(1, 6)]]
    path = pages.write_html(report(names), tmp_path / "page.html")
    assert "caf\ufffd" in path.read_text(encoding="utf-8")


def test_page_names_no_address_on_a_network():
    reader = Reader(report())
    assert reader.addresses
    assert all(address.startswith("data:") for address in reader.addresses)


def test_page_without_the_optional_parts():
    text = report(metrics=None, curve=None, occlusions=(), notice="")
    reader = Reader(text)
    assert len(reader.scripts) == 4
    for absent in ('id="metrics"', 'id="roc"', 'id="occlusion"', 'role="note"'):
        assert absent not in text


def test_evaluation_page_compares_models():
    metrics = {"a": {"EER": pages.Metric(0.1)}, "b": {"AUC": pages.Metric(0.9, note="few")}}
    curves = {"a": curve([0.5, 0.9], [0.1]), "b": curve([0.4], [0.1, 0.6])}
    reader = Reader(pages.evaluation_page(metrics, curves))
    assert [trace["name"] for trace in reader.json("roc-json")["data"]] == ["a", "b"]
    assert {"EER", "AUC", "0.100", "0.900", "few"} <= {part.strip() for part in reader.text}


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros(3, dtype=int)},
        {"labels": np.full(24, 6)},
        {"labels": np.full(24, -1)},
        {"images": np.zeros((24, 8, 8), dtype=np.uint8)},
        {"images": np.zeros((23, 8, 8, 3), dtype=np.uint8)},
        {"images": np.zeros((24, 8, 8, 3), dtype=np.float32)},
        {"embeddings": np.full((24, 16), np.nan, dtype=np.float32)},
        {"embeddings": np.zeros(24, dtype=np.float32)},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change):
    given = dict(zip(("embeddings", "labels", "names", "images"), faces(), strict=True)) | change
    with pytest.raises(ValueError):
        pages.embedding_map(**given)


def test_write_html_is_whole_and_leaves_nothing_else(tmp_path):
    path = pages.write_html(pages.training_curves(HISTORY), tmp_path / "a" / "b.html", "A <title>")
    text = path.read_text(encoding="utf-8")
    assert "<title>A &lt;title&gt;</title>" in text
    assert text.count("plotly.js v") == 1
    assert [file.name for file in path.parent.iterdir()] == ["b.html"]
    pages.write_html([pages.training_curves(HISTORY)] * 2, path)
    assert len(Reader(path.read_text(encoding="utf-8")).scripts) == 6


def test_write_html_keeps_the_old_page_when_writing_fails(tmp_path, monkeypatch):
    path = pages.write_html("old", tmp_path / "page.html")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("facerec.runtime.files.os.replace", fail)
    with pytest.raises(InputError, match="cannot be written: disk full"):
        pages.write_html("new", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sprites_lie_where_the_layout_says():
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 3), 30, np.uint8)
    css, layout = page.sprite_css(images, "s", size=8, per_sheet=4)
    assert layout == {"prefix": "s", "perSheet": 4, "columns": 2, "rows": 2}
    assert css.count("{background-image") == 2
    assert "s-1" in page.sprite(layout, 6, "<x>")
    assert "background-position:0.0000% 100.0000%" in page.sprite(layout, 6, "<x>")
    assert "&lt;x&gt;" in page.sprite(layout, 6, "<x>")


def test_page_of_two_thousand_faces_is_under_twelve_megabytes(monkeypatch):
    # Noise is what a picture codec compresses worst; the projections are not what is measured.
    monkeypatch.setattr("facerec.report.sections.tsne", lambda rows, d, seed: rows[:, :d])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2000, 12, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    labels = np.repeat(np.arange(500), 4)
    embeddings = rng.normal(size=(2000, 128)).astype(np.float32)
    names = [f"Somebody {n}" for n in range(500)]
    text = pages.report_page(embeddings, labels, names, images, curve=curve([0.5, 0.9], [0.1, 0.6]))
    text = text.page
    assert len(text.encode()) < 12e6
