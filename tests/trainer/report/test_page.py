"""The page of a run: whole, half done, without scores or images; nothing in it comes from outside."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import ask, needs_chromium
from typer.testing import CliRunner

from embae.datasets.errors import DataError
from embae.trainer.commands.app import app
from embae.trainer.errors import RecipeError

ROWS = ["Baseline", "EmbAE-cam"]


def report(*words: object) -> None:
    done = CliRunner().invoke(app, ["report", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def here(undisturbed: tuple[Path, tuple[object, ...]]) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(undisturbed[0])  # data.root is relative
        yield undisturbed[0]


@pytest.fixture(scope="module")
def page(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    report("whole", "--out", path)
    return path


@pytest.fixture
def run(here: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree("whole", tmp_path / "run"))


class Reader(html.parser.HTMLParser):
    """Checks that elements close in order, and keeps what the page says and names."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_stands_alone(page: Path) -> None:
    found = read(page)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in found.addresses)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text) and page.stat().st_size < 5e6
    assert found.names.count("script") == 1 and "default-src 'none'" in text
    anchors = [address[1:] for address in found.addresses if address.startswith("#")]
    assert len(anchors) == 10 and all(f'id="{anchor}"' in text for anchor in anchors)


def test_it_says_what_the_run_does(page: Path) -> None:
    text, scores = read(page).text, json.loads(Path("whole/evaluation/park.json").read_text())["rows"]
    for row in ROWS:
        assert row in text and f"{scores[row]['mAP']:.3f}" in text
    assert f"{scores[ROWS[1]]['mAP'] - scores[ROWS[0]]['mAP']:+.3f}" in text
    for word in ("world size 2", "target-nuisance", "target, trained on without labels", "licence of its card",
                 "EmbAE-cam: nuisance, by camera", "Baseline: first match at"):
        assert word in text, word
    assert "not finished" not in text
    drawn = page.read_text(encoding="utf-8")
    assert drawn.count('class="chip train"') == 1 + 2 + 2 + 1 + 2 and drawn.count("<svg") > 10


def test_tensorboards_projector_has_the_scored_images(here: Path) -> None:
    for stage in ("embedding", "target-embedding"):
        folder = here / "whole" / "tensorboard" / stage
        lines = (folder / "projector" / "park-metadata.tsv").read_text().splitlines()
        assert (folder / "projector_config.pbtxt").exists() and len(lines) > 10


def test_it_is_the_same_again(page: Path, tmp_path: Path) -> None:
    report("whole", "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_run_that_is_not_finished(run: Path) -> None:
    for stage in ("target-nuisance", "target-embedding"):
        shutil.rmtree(run / stage)
    shutil.rmtree(run / "evaluation")
    shutil.rmtree(run / "embedding" / "evaluation")
    (run / "stopped").write_text('{"why": "stopped by <b>SIGTERM</b>"}')
    report(run)
    text = read(run / "evaluation" / "report.html").text
    assert "not finished: target-nuisance, target-embedding are still to do" in text and "<b>SIGTERM</b>" in text
    assert "There are no scores: it has scored nothing yet." in text and "No embeddings are saved yet" in text
    assert "Baseline: embedding, by camera" in text  # what is done is shown


def test_a_run_that_has_hardly_begun(run: Path) -> None:
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (run / "metrics.jsonl").unlink()
    report(run)
    text = read(run / "evaluation" / "report.html").text
    assert "holds no training records yet" in text and "No model is done yet." in text


def test_a_run_whose_images_are_gone(run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("root: shards", "root: gone"))
    report(run)
    text = read(run / "evaluation" / "report.html").text
    assert "The target's images are not here: gone/park: no such dataset" in text and "park is not here" in text
    assert "Curves" in text and ROWS[1] in text


def test_a_relative_root_is_found_from_elsewhere(
    page: Path, here: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own folder leads to its data; a copy far from them says where to ask, and shows what it can."""
    monkeypatch.chdir(tmp_path)
    report(here / "whole", "--out", "page.html")
    assert Path("page.html").read_bytes() == page.read_bytes()
    report(run, "--out", "far.html")
    text = read(Path("far.html")).text
    assert "shards, is relative to the folder that embae train was started in" in text
    assert "Curves" in text and "park is not here" in text


def test_embeddings_that_do_not_fit_are_reported(run: Path) -> None:
    np.savez(run / "target-embedding" / "evaluation" / "park.npz", query=np.ones((2, 3)), gallery=np.ones((4, 3)))
    report(run)
    assert "does not match this dataset" in read(run / "evaluation" / "report.html").text
    (run / "target-embedding" / "evaluation" / "park.npz").write_bytes(b"PK")
    report(run)
    assert "cannot be read" in read(run / "evaluation" / "report.html").text


def test_what_a_stranger_wrote_stays_text(run: Path) -> None:
    bad = "<img src=x onerror=alert(1)>\"'"
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(f"# {bad}\n# {bad}\n" + text[text.index("name:"):].replace("EmbAE-cam:", f"{json.dumps(bad)}:"))
    scores = run / "evaluation" / "park.json"
    tree = json.loads(scores.read_text())
    scores.write_text(json.dumps({**tree, "dataset": bad, "tta": bad, "rows": {bad: tree["rows"]["EmbAE-cam"]}}))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({**json.loads(lines[0]), "dataset": bad})]))
    report(run)
    found = read(run / "evaluation" / "report.html")
    assert found.text.count(bad) >= 5
    assert not [address for address in found.addresses if not address.startswith(("#", "data:image/jpeg"))]


def test_another_dataset_is_scored_for_the_page(here: Path, tmp_path: Path) -> None:
    report("whole", "--dataset", "tower", "--out", tmp_path / "tower.html")
    text = read(tmp_path / "tower.html").text
    assert "Rank-1 on tower, EmbAE-cam" in text and "The first answer is" in text and "park, 8 queries" in text


def test_what_was_ranked_otherwise_stands_beside_what_the_run_says(here: Path, tmp_path: Path) -> None:
    """Scores of the kept embeddings are those that embae evaluate takes."""
    how = "--rerank", "--expand", 2
    report("whole", *how, "--out", tmp_path / "again.html")
    text = read(tmp_path / "again.html").text
    said = "queries expanded by 2 images, k-reciprocal re-ranking"
    assert "Rank-1 on park, EmbAE-cam, expanded by 2, re-ranked" in text
    assert f"EmbAE-cam, nearest first, {said}" in text and "none, mAP by trapezoid" in text
    table = text.split("Stages")[1].split("none, mAP by trapezoid")[0]
    assert f"none, {said}, mAP by trapezoid" in table
    asked = ["evaluate", "whole", *map(str, how), "--json", str(tmp_path / "scores.json")]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    for scores in json.loads((tmp_path / "scores.json").read_text())["rows"].values():
        assert f"{scores['mAP']:.3f}" in table and "{:.3f} … {:.3f}".format(*scores["interval"]["mAP"]) in table


def test_what_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"not a run folder, recipe\.yaml is missing"):
        report(tmp_path)
    with pytest.raises(DataError, match="no such dataset"):
        report("whole", "--dataset", "nowhere")


@needs_chromium
def test_a_browser_shows_pictures_and_sorts_tables(page: Path, tmp_path: Path) -> None:
    answer = ask(page, """
      const column = () => [...document.querySelectorAll("#scores tbody tr")].map((row) => row.cells[3].dataset.sort);
      const button = document.querySelectorAll("#scores th button")[3], orders = [];
      for (let click = 0; click < 2; click++) { button.click(); orders.push(column().map(Number)); }
      return {orders, widths: [...document.images].map((one) => one.naturalWidth),
              wider: document.documentElement.scrollWidth - document.documentElement.clientWidth};
    """, tmp_path)
    down, up = answer["orders"]
    assert down == sorted(down, reverse=True) and up == down[::-1] and down[0] > down[1]
    assert len(answer["widths"]) > 10 and min(answer["widths"]) > 0 and answer["wider"] <= 0


@needs_chromium
def test_a_phone_scrolls_no_page_sideways(page: Path, tmp_path: Path) -> None:
    wider = ask(page, "return document.documentElement.scrollWidth - innerWidth", tmp_path, width=500)
    assert wider <= 0
