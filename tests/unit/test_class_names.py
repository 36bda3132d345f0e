"""Classes of source, target and validation are matched by name, all the way to the training samples and the counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit.data_files import camvid, cityscapes, gta5, labels, photo, save

from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.data.classes import CAMVID, CITYSCAPES, IGNORE, match_classes
from udaseg.data.index import load_index
from udaseg.data.prepare import prepare
from udaseg.engine.assembly import missing_prerequisites, scorer, warnings
from udaseg.engine.domains import class_set, images_of, training_pairs
from udaseg.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(benchmark: str, *overrides: str, name: str = "source_only") -> Recipe:
    return load(name, benchmark=benchmark, overrides=overrides).recipe


def problems(benchmark: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        recipe(benchmark, *overrides)
    return str(error.value)


def test_match_by_name() -> None:
    assert match_classes(("a", "b", "c"), ("c", "a"), {}) == (1, IGNORE, 0)
    assert match_classes(("a", "b", "c"), ("c", "a"), {"b": "a", "a": "ignore"}) == (IGNORE, 1, 0)


def test_streets_become_camvid(home: Path) -> None:
    gta5(home / "streets/gta5", size=(64, 40))
    camvid(home / "camvid")
    prepare("streets_source"), prepare("camvid")
    data = recipe("streets_camvid", "data.crop=[24,24]", "data.source.size=null", name="dacs")
    assert class_set(data).names == CAMVID.names
    pairs = training_pairs(data)
    own, own_index = CITYSCAPES.names, load_index("streets_source", "train")
    index = pairs.source.index
    merge = data.data.source.merge
    for c, name in enumerate(CAMVID.names):
        parts = [k for k, own_name in enumerate(own) if merge.get(own_name, own_name) == name]
        assert parts and np.array_equal(index.counts[:, c], own_index.counts[:, parts].sum(1)), name
    for i in range(4):
        label = pairs.source.native_label(i)
        assert np.bincount(label.ravel(), minlength=256)[:11].tolist() == index.counts[i].tolist()
    seen = {int(v) for k in range(6) for v in np.unique(pairs[k]["source_label"])}
    assert seen <= {*range(11), IGNORE} and {1, 5, 10, IGNORE} <= seen
    images = images_of(data.data.validation, 1, CAMVID.names)
    assert set(np.unique(images[0]["label"])) <= {*range(11), IGNORE}


def test_without_partner_a_class_is_ignored(home: Path) -> None:
    gta5(home / "gta5")
    camvid(home / "camvid")
    prepare("gta5"), prepare("camvid")
    data = recipe(
        "gta5_cityscapes", "data.validation={dataset: camvid, split: val, merge: {tree: vegetation}, size: null}",
        "data.target=null",
    )  # fmt: skip
    images = images_of(data.data.validation, 1, class_set(data).names)
    raw = images_of(data.data.validation, 1)[0]["label"].numpy()
    expected = match_classes(CAMVID.names, CITYSCAPES.names, {"tree": "vegetation"})
    assert IGNORE in expected and expected[5] == CITYSCAPES.names.index("vegetation")
    found = images[0]["label"].numpy()
    assert all((found[raw == c] == train_id).all() for c, train_id in enumerate(expected))
    assert (found[raw == IGNORE] == IGNORE).all()


def test_nothing_in_common(home: Path) -> None:
    camvid(home / "camvid")
    prepare("camvid")
    with pytest.raises(UserError, match=r"has none of the classes soil, crop"):
        load_index("camvid", "val").as_classes(("soil", "crop"), {})


def field(place: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(4):
        save(place / f"field/img/{i}.png", photo(rng, (64, 48)))
        save(place / f"field/lab/{i}.png", labels(rng, (64, 48), 3))
    (place / "field.yaml").write_text("""\
name: field
root: field
classes: [soil, crop, weed]
splits: {all: {images: "img/*.png", masks: "lab/{stem}.png"}, target: {images: "img/*.png"}}
""")
    (place / "fields.yaml").write_text("""\
# A field.
data:
  source: {dataset: field.yaml, split: all, size: [64, 48]}
  target: {dataset: field.yaml, split: target, size: [64, 48]}
  validation: {dataset: field.yaml, split: all, size: [64, 48]}
  crop: [32, 32]
  protocol: all
""")
    return place / "field.yaml"


def test_a_described_data_set_in_a_benchmark(home: Path) -> None:
    field(home)
    data = load("source_only", benchmark="fields.yaml").recipe
    assert class_set(data).names == ("soil", "crop", "weed")
    assert any("udaseg prepare" in p.message and "field.yaml" in p.message for p in missing_prerequisites(data))
    prepare("field.yaml")
    assert set(np.unique(training_pairs(data)[0]["source_label"])) == {0, 1, 2}
    assert scorer(data)([[5, 0, 0], [0, 4, 0], [0, 4, 0]]) == pytest.approx(50.0)
    message = problems("fields.yaml", "data.protocol=cityscapes19")
    assert "cityscapes19 counts classes that are not learnt here: road, sidewalk" in message and "`all`" in message


def test_wrong_names_are_all_told(home: Path) -> None:
    (home / "bad.yaml").write_text("name: bad")
    message = problems(
        "streets_camvid", "data.source.merge.terain=tree", "data.source.merge.wall=bilding", "data.classes=camvit",
    )  # fmt: skip
    assert "data.source.merge.terain: no class 'terain'; did you mean 'terrain'?" in message
    assert "data.classes: unknown data set 'camvit'; did you mean 'camvid'?" in message
    message = problems("streets_camvid", "data.source.merge.wall=bilding", "data.target.dataset=bad.yaml")
    assert "data.source.merge.wall: no class 'bilding'; did you mean 'building'?" in message
    assert "data.target.dataset: data set" in message and "classes: is missing" in message


def test_both_spellings(home: Path) -> None:
    data = recipe("cityscapes_dark_zurich", "data.target.dataset=dark-zurich")
    cityscapes(home / "cityscapes")
    assert class_set(data) == CITYSCAPES and data.data.crop_margins == (15, 120)


def test_warnings_name_what_is_ignored(home: Path) -> None:
    gta5(home / "gta5")
    camvid(home / "camvid")
    prepare("gta5"), prepare("camvid")
    data = recipe("gta5_cityscapes", "data.validation={dataset: camvid, split: val}", "data.target=null")
    found = " ".join(warnings(data, training_pairs(data)))
    assert "classes of camvid that become ignore (data.validation.merge): pavement, tree, sign" in found
