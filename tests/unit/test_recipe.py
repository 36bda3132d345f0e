"""Recipes: layers, merging, provenance, and messages that list everything that is wrong."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from udaseg.config.checks import warnings
from udaseg.config.layers import OVERRIDE, chain, difference, leaves, locate, merge, normalise, parse_override, shipped
from udaseg.config.load import Loaded, benchmark_data, checked
from udaseg.config.load import load as load_by_name
from udaseg.config.registry import REGISTRIES
from udaseg.engine.assembly import missing_prerequisites
from udaseg.errors import UserError
from udaseg.problems import set_by
from udaseg.yamls import as_yaml, parse_yaml, read_yaml

TERMS = ", ".join(sorted(REGISTRIES["term"].entries))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path | str, *overrides: str, **layers: Any) -> Loaded:
    return load_by_name(str(path), overrides=overrides, **layers)


def refused(path: Path | str, *overrides: str, **layers: Any) -> str:
    with pytest.raises(UserError) as error:
        load(path, *overrides, **layers)
    return str(error.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- finding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dacs", "dacs.yaml"])
def test_a_shipped_recipe_by_name(here: Path, name: str) -> None:
    assert locate(name) == shipped()["dacs"]


def test_a_file_by_path_with_or_without_ending(here: Path) -> None:
    write(here / "my/own.yaml", "extends: dacs")
    write(here / "my/old.yml", "extends: dacs")
    for name in ("my/own.yaml", "my/own", str(here / "my/own.yaml"), "./my/../my/own.yaml"):
        assert locate(name).resolve() == here / "my/own.yaml"
    assert locate("my/old.yml") == Path("my/old.yml")


def test_a_file_in_the_working_folder_goes_before_a_shipped_one_of_that_name_with_ending(here: Path) -> None:
    write(here / "dacs.yaml", "extends: daformer")
    assert locate("dacs.yaml") == Path("dacs.yaml")
    assert locate("dacs") == shipped()["dacs"]


@pytest.mark.parametrize("name", ["", ".", "..", "nosuch", "nosuch.yaml", "a/b/c", "/nosuch.yaml", "ünï"])
def test_names_of_nothing(here: Path, name: str) -> None:
    message = refused(name)
    assert f"no recipe {name!r}" in message and "source_only" in message and "udaseg recipe ls" in message


def test_a_folder_or_another_file_is_not_a_recipe(here: Path) -> None:
    (here / "folder.yaml").mkdir()
    write(here / "notes.txt", "extends: dacs")
    assert "no recipe" in refused("folder.yaml")
    assert "no recipe" in refused("notes.txt")


def test_nearest_name_of_recipes_and_benchmarks(here: Path) -> None:
    assert "did you mean 'daformer'?" in refused("dafomer")
    message = refused("dacs", benchmark="streetz")
    assert "no benchmark 'streetz'" in message and "did you mean 'streets'?" in message and "daformer" not in message


# --- extends -------------------------------------------------------------------------------------------------------


def test_extends_is_relative_to_the_extending_file(here: Path) -> None:
    write(here / "base.yaml", "extends: dacs\ntrain: {batch: 7}")
    write(here / "deep/er/middle.yaml", "extends: ../../base.yaml\nseed: 3")
    top = write(here / "deep/top.yaml", "extends: er/middle\nseed: 4")
    write(here / "deep/base.yaml", "not: this one")
    recipe = load(top).recipe
    assert (recipe.train.batch, recipe.seed, recipe.name) == (7, 4, "top")


def test_chain_is_root_first() -> None:
    assert [source for source, _ in chain("daformer")] == [
        "recipes/source_only.yaml",
        "recipes/dacs.yaml",
        "recipes/daformer.yaml",
    ]


def test_a_user_may_extend_the_shipped_recipe_of_the_same_name(here: Path) -> None:
    assert load(write(here / "dacs.yaml", "extends: dacs\nseed: 9")).recipe.seed == 9


def test_cycles_are_named(here: Path) -> None:
    one = write(here / "one.yaml", "extends: two.yaml")
    write(here / "two.yaml", "extends: ./one.yaml")
    assert "one.yaml <- two.yaml <- one.yaml" in refused(one)
    assert "extends itself" in refused(write(here / "me.yaml", "extends: me.yaml"))


def test_a_missing_parent_is_named(here: Path) -> None:
    assert "no recipe 'nosuch'" in refused(write(here / "orphan.yaml", "extends: nosuch"))


@pytest.mark.parametrize("key", ["extends", "benchmark"])
@pytest.mark.parametrize("value", ["[dacs, daformer]", "5", "{a: dacs}", "true"])
def test_one_parent_and_one_benchmark_only(here: Path, key: str, value: str) -> None:
    message = refused(write(here / "two.yaml", f"{key}: {value}"))
    assert f"two.yaml: {key}:" in message and "one name or path is expected" in message


# --- YAML ----------------------------------------------------------------------------------------------------------


def bomb() -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 4):  # few enough to do no harm where they are not refused
        lines.append(f"a{level}: &a{level} {{{', '.join(f'k{i}: *a{level - 1}' for i in range(9))}}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a\n- b", "a recipe is a map of keys, not list"),
        ("", "a recipe is a map of keys, not NoneType"),
        ("just words", "a recipe is a map of keys, not str"),
        ("a: [1", "line 1, column"),
        ("a: 1\n b: 2", "line 2, column 3"),
        ("a:\n\t- 1", "line 2, column 1"),
        ("model: !!python/object/apply:os.system ['exit 3']", "python/object/apply:os.system"),
        ("model: !!python/name:os.system", "python/name"),
        (bomb(), "alias *a0"),
        ("a: &a {b: *a}", "alias *a"),
        ("seed: 1\nseed: 2", "line 2, column 1: key 'seed' occurs twice"),
        ("train: {batch: 1, batch: 2}", "key 'batch' occurs twice"),
        ("1: 2", "key 1 is not text"),
        ("views: {no: {}}", "key False is not text"),
        ("train: {~: 2}", "key None is not text"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 2", "but found another document"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_files_that_are_refused(here: Path, text: str, complaint: str) -> None:
    path = write(here / "bad.yaml", text)
    message = refused(path)
    assert message.startswith(f"{path}: ") and complaint in message


def test_not_text(here: Path) -> None:
    path = here / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid YAML" in refused(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("6e-5", 6e-5), ("-1E+3", -1000.0), ("4e4", 40000.0), ("1.5e-3", 1.5e-3), ("2.e1", 20.0), ("7", 7), ("0.5", 0.5)],
)
def test_numbers_are_numbers(text: str, value: float) -> None:
    """YAML 1.1 takes 6e-5 for text."""
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize("text", ["e5", "1e", "mit_b5", "6e-5x", "'6e-5'", "1-2"])
def test_text_stays_text(text: str) -> None:
    assert isinstance(parse_yaml(text), str)


def test_what_is_written_is_read_back(here: Path) -> None:
    tree = {"a": 6e-5, "b": ["ü", 1, True, 1e20], "c": {"d": "no", "e": "5", "f": "1e5"}}
    shared = [1, 2]
    for value in (tree, {"one": shared, "two": shared}):
        assert read_yaml(write(here / "x.yaml", as_yaml(value))) == value


# --- merging -------------------------------------------------------------------------------------------------------


def merged(*layers: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    tree: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for number, layer in enumerate(layers):
        merge(tree, layer, f"layer {number}", origin)
    return tree, origin


def test_maps_merge_lists_replace() -> None:
    tree, origin = merged({"a": {"x": 1, "l": [1, 2]}, "b": 1}, {"a": {"y": 2, "l": [3]}})
    assert tree == {"a": {"x": 1, "l": [3], "y": 2}, "b": 1}
    assert origin["a", "x"] == "layer 0" and origin["a", "y"] == origin["a", "l"] == "layer 1"


def test_a_map_replaces_a_value_and_a_value_a_map() -> None:
    tree, origin = merged({"a": {"x": 1}, "b": 2}, {"a": 3, "b": {"y": 4}})
    assert tree == {"a": 3, "b": {"y": 4}}
    assert ("a", "x") not in origin and origin["a",] == origin["b", "y"] == "layer 1"


def test_another_kind_replaces_the_map_the_same_kind_merges() -> None:
    below = {"part": {"kind": "one", "x": 1}}
    assert merged(below, {"part": {"kind": "two"}})[0] == {"part": {"kind": "two"}}
    assert merged(below, {"part": {"kind": "one", "y": 2}})[0] == {"part": {"kind": "one", "x": 1, "y": 2}}
    assert merged(below, {"part": {"y": 2}})[0] == {"part": {"kind": "one", "x": 1, "y": 2}}
    assert ("part", "x") not in merged(below, {"part": {"kind": "two"}})[1]


def test_layers_stay_as_they_were() -> None:
    below, above = {"a": {"x": [1]}}, {"a": {"y": {"z": 1}}}
    merged(below, above)
    assert below == {"a": {"x": [1]}} and above == {"a": {"y": {"z": 1}}}


def test_parts_named_by_a_string_become_maps() -> None:
    tree = normalise({"model": {"encoder": "mit_b5", "decoder": {"kind": "fpn"}}, "pseudo_labels": "x", "data": None})
    assert tree == {
        "model": {"encoder": {"kind": "mit_b5"}, "decoder": {"kind": "fpn"}},
        "pseudo_labels": {"kind": "x"},
        "data": None,
    }


def test_null_removes(here: Path) -> None:
    path = write(
        here / "r.yaml", "extends: daformer\nviews: {mixed: null, source: {terms: {feature_distance: }}}\nseed:"
    )
    loaded = load(path)
    assert list(loaded.recipe.views) == ["source"]
    assert list(loaded.recipe.views["source"].terms) == ["cross_entropy"]
    assert loaded.recipe.seed == 0 and "seed" not in loaded.tree


def test_what_null_removed_can_be_put_back(here: Path) -> None:
    below = write(here / "below.yaml", "extends: dacs\nviews: {mixed: null}")
    above = write(here / "above.yaml", f"extends: {below}\nviews: {{mixed: {{terms: {{cross_entropy: {{}}}}}}}}")
    recipe = load(above).recipe
    assert list(recipe.views) == ["source", "mixed"]
    assert recipe.views["mixed"].options["jitter"] == load("dacs").recipe.views["mixed"].options["jitter"]


def test_another_sampler_or_encoder_leaves_the_settings_of_the_old_behind(here: Path) -> None:
    path = write(
        here / "r.yaml", "extends: daformer\ndata: {sampler: uniform}\nmodel: {encoder: resnet50, decoder: deeplabv2}"
    )
    recipe = load(path).recipe
    assert recipe.data.sampler == {"kind": "uniform"}
    assert recipe.model.encoder["kind"] == "resnet50" and recipe.model.decoder["kind"] == "deeplabv2"


# --- layers --------------------------------------------------------------------------------------------------------

BENCHMARK = """\
data:
  source: {dataset: streets_source, size: [64, 32]}
  target: {dataset: streets_target, size: [64, 32]}
  crop: [32, 32]
  min_pixels: 11
  sampler: rare_class
"""


def test_the_benchmark_is_the_lowest_layer(here: Path) -> None:
    write(here / "b.yaml", BENCHMARK)
    path = write(here / "r.yaml", "extends: dacs\ndata: {min_pixels: 77}")
    loaded = load(path, benchmark="b.yaml")
    assert loaded.recipe.data.min_pixels == 77  # the user's recipe wins
    assert loaded.recipe.data.crop == (32, 32)
    assert loaded.recipe.data.sampler == {"kind": "uniform"}  # even a shipped recipe wins
    assert loaded.recipe.data.validation is None  # another benchmark does not shine through
    assert load(path, "data.min_pixels=5", benchmark="b.yaml").recipe.data.min_pixels == 5


def test_who_chooses_the_benchmark(here: Path) -> None:
    path = write(here / "r.yaml", "extends: dacs\nbenchmark: streets")
    assert load(path).recipe.benchmark == "streets"
    assert load(path, "benchmark=gta5_cityscapes").recipe.data.source.dataset == "gta5"
    loaded = load(path, "benchmark=streets", benchmark="gta5_cityscapes")
    assert (loaded.recipe.benchmark, loaded.recipe.data.source.dataset) == ("gta5_cityscapes", "gta5")
    assert loaded.origin["benchmark",] == OVERRIDE and load(path).origin["benchmark",] == str(path)
    assert "data.source: is missing" in refused(path, "benchmark=null")


def test_a_recipes_benchmark_is_relative_to_the_recipe(here: Path) -> None:
    write(here / "mine/b.yaml", BENCHMARK)
    path = write(here / "mine/r.yaml", "extends: dacs\nbenchmark: b.yaml")
    loaded = load(path)
    assert loaded.recipe.benchmark == "b" and loaded.recipe.data.min_pixels == 11


def test_an_empty_benchmark_is_not_no_benchmark(here: Path) -> None:
    assert "no benchmark ''" in refused("dacs", benchmark="")


def test_overlays_lie_between_recipe_and_overrides() -> None:
    overlays = [("overlay", {"seed": 5, "train": {"batch": 6}, "model": {"encoder": "tiny"}})]
    loaded = load("dacs", "train.batch=8", overlays=overlays)
    assert (loaded.recipe.seed, loaded.recipe.train.batch, loaded.recipe.train.iterations) == (5, 8, 40000)
    assert loaded.recipe.model.encoder["kind"] == "tiny"
    assert loaded.origin["seed",] == "overlay" and loaded.origin["train", "batch"] == OVERRIDE


def test_overrides_apply_in_order_and_take_yaml_values() -> None:
    recipe = load(
        "dacs", "seed=1", "seed=2", "data.crop=[64, 32]", "optimiser.lr=1e-3", "data.target.root=ünï cödé"
    ).recipe
    assert (recipe.seed, recipe.data.crop, recipe.optimiser.lr) == (2, (64, 32), 1e-3)
    assert recipe.data.target is not None and recipe.data.target.root == "ünï cödé"


def test_overrides_of_parts() -> None:
    recipe = load("daformer", "model.encoder=mit_b0", "views.source.terms.feature_distance.weight=5e-3").recipe
    assert recipe.model.encoder["kind"] == "mit_b0" and recipe.views["source"].weights["feature_distance"] == 5e-3
    assert load("daformer", "views.source.terms.feature_distance=null").recipe.views["source"].weights == {
        "cross_entropy": 1
    }


@pytest.mark.parametrize(
    "text", ["", "seed", "=3", ".=3", "a..b=3", "a.=3", ".a=3", "seed=", "seed= ", "a=[1", "a=!!x 1", "a=*b"]
)
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(UserError, match="override") as error:
        parse_override(text)
    assert repr(text) in str(error.value)


def test_an_equals_sign_in_the_value_belongs_to_it() -> None:
    assert parse_override("data.source.root=/a=b") == (("data", "source", "root"), "/a=b")


# --- provenance ----------------------------------------------------------------------------------------------------


def test_every_value_knows_its_file(here: Path) -> None:
    path = write(here / "mine.yaml", "extends: daformer\ntrain: {batch: 4}\nmodel: {encoder: {drop_path: 0.2}}")
    origin = load(path, "seed=3", benchmark="streets").origin
    assert origin["train", "batch"] == str(path)
    assert origin["train", "iterations"] == "recipes/source_only.yaml"
    assert origin["model", "encoder", "kind"] == "recipes/daformer.yaml"
    assert origin["model", "encoder", "drop_path"] == str(path)
    assert origin["views", "mixed", "jitter"] == "recipes/dacs.yaml"
    assert origin["data", "crop"] == "recipes/benchmarks/streets.yaml"
    assert origin["seed",] == origin["benchmark",] == OVERRIDE
    assert origin["name",] == str(path)


@pytest.mark.parametrize("name", ["daformer", "source_only"])
def test_every_leaf_has_an_origin_and_every_origin_a_value(name: str) -> None:
    loaded = load(name, "model.encoder=mit_b0", "teacher.alpha=null")
    paths = {path for path, _ in leaves(loaded.tree)}
    assert paths <= set(loaded.origin)
    prefixes = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    assert set(loaded.origin) - prefixes <= {("teacher", "alpha"), ("teacher",)}  # the removal, too, has an origin


def test_set_by_falls_back_to_the_nearest_key_above() -> None:
    origin = {("a",): "low", ("a", "b"): "high"}
    assert set_by(("a", "b", "c"), origin) == "high"
    assert set_by(("a", "x"), origin) == "low"
    assert set_by(("z",), origin) == "recipe"


# --- what is wrong -------------------------------------------------------------------------------------------------


def test_all_errors_at_once_with_file_key_and_nearest_name(here: Path) -> None:
    path = write(
        here / "wrong.yaml",
        "extends: daformer\nsede: 1\ntrain: {bach: 3, iterations: many}\nmodel: {encoder: mit_b9}\n"
        "views: {mixt: {terms: {cross_entropy: {}}}, source: {terms: {feature_distanc: {}}}, mixed: {jiter: 1}}\n",
    )
    message = refused(path, "optimiser.lr=-1", "data.sampler.temperatur=2")
    head, *lines = message.splitlines()
    assert "9 problem(s)" in head and "'wrong'" in head and len(lines) == 9
    for file, key, words in (
        (path, "sede", "did you mean 'seed'?"),
        (path, "train.bach", "did you mean 'batch'? allowed: batch"),
        (path, "train.iterations", "'many' is not allowed"),
        (path, "model.encoder", "did you mean 'mit_b"),
        (path, "views.mixt", "did you mean 'mixed'?"),
        (path, "views.source.terms.feature_distanc", f"did you mean 'feature_distance'? allowed: {TERMS}"),
        (path, "views.mixed.jiter", "did you mean 'jitter'?"),
        (OVERRIDE, "optimiser.lr", "greater than 0"),
        (OVERRIDE, "data.sampler.temperatur", "did you mean 'temperature'?"),
    ):
        (line,) = [line for line in lines if line.startswith(f"  {file}: {key}: ")]
        assert words in line


def test_unknown_data_sets_and_protocols() -> None:
    message = refused("dacs", "data.target.dataset=cityscape", "data.protocol=synthia", "data.source.dataset=gta")
    assert f"{OVERRIDE}: data.target.dataset: unknown data set 'cityscape'; did you mean 'cityscapes'?" in message
    assert (
        "data.protocol: unknown protocol 'synthia'; did you mean 'synthia16'? allowed: all, camvid11, city" in message
    )
    assert "data.source.dataset" in message


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("train=5", "train", "a map of keys is expected"),
        ("data=[1]", "data", "a map of keys is expected"),
        ("model=tiny", "model", "a map of keys is expected"),
        ("model.encoder=[tiny]", "model.encoder", "a map of keys is expected"),
        ("model.encoder.kind=[tiny]", "model.encoder", "unknown encoder ['tiny']"),
        ("model.encoder=null", "model.encoder", "is missing"),
        ("views=null", "views", "at least one view"),
        ("views=[source]", "views", "at least one view; allowed: masked, mixed"),
        ("views.source=3", "views.source", "a map of keys is expected"),
        ("views.source.terms=null", "views.source.terms", f"at least one term; allowed: {TERMS}"),
        ("views.source.terms.cross_entropy=0.5", "views.source.terms.cross_entropy", "as in {weight: 0.5}"),
        ("views.source.terms.cross_entropy.weight=much", "views.source.terms.cross_entropy.weight", "a number"),
        ("views.source.terms.cross_entropy.weight=true", "views.source.terms.cross_entropy.weight", "a number"),
        ("views.source.terms.cross_entropy.weight=.nan", "views.source.terms.cross_entropy.weight", "a number"),
        ("pseudo_labels=margin", "pseudo_labels", "unknown weighting rule 'margin'"),
        ("data.sampler=rare", "data.sampler", "did you mean 'rare_class'?"),
        ("data.crop=512", "data.crop", "a list is expected"),
        ("data.crop=[512]", "data.crop.1", "is missing"),
        ("data.crop=[0, 512]", "data.crop.0", "greater than 0"),
        ("data.crop_margins=[-1, 0]", "data.crop_margins.0", "greater than or equal to 0"),
        ("data.margins=both", "data.margins", "'none', 'crop' or 'image'"),
        ("train.batch=0", "train.batch", "greater than 0"),
        ("train.batch=2.5", "train.batch", "integer"),
        ("train.batch.x=4", "train.batch", "integer"),
        ("train.precision=fp8", "train.precision", "'auto', 'fp32'"),
        ("optimiser.lr=.inf", "optimiser.lr", "finite"),
        ("optimiser.power=.nan", "optimiser.power", "finite"),
        ("views.mixed.jitter=.nan", "views.mixed.jitter", "finite"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        (f"seed={2**63}", "seed", "less than"),
        ("runtime.threads=-1", "runtime.threads", "greater than 0"),
        ("runtime.threads=1000000", "runtime.threads", "less than or equal to 1024"),
        ("runtime.device=gpu", "runtime.device", "'gpu' is not a device; allowed: auto, cpu, cuda, cuda:N, mps"),
        ("train.iterations=10000000", "train.iterations", "less than 10000000"),
        ("train.batch=true", "train.batch", "True is not allowed: a number is expected"),
        ("train.batch=70000", "train.batch", "less than or equal to 65536"),
        ("data.crop=[true, 512]", "data.crop.0", "True is not allowed: a number is expected"),
        ("data.crop=[512, 70000]", "data.crop.1", "less than or equal to 65536"),
        ("data.scale=65", "data.scale", "less than or equal to 64"),
        ("views.mixed.jitter=true", "views.mixed.jitter", "True is not allowed: a number is expected"),
        (
            "model={encoder: {kind: mit_b0, drop_path: false}}",
            "model.encoder.drop_path",
            "False is not allowed",
        ),
        ("optimiser.power=-1", "optimiser.power", "greater than or equal to 0"),
        ("optimiser.minimum=-1", "optimiser.minimum", "greater than or equal to 0"),
        ("optimiser.minimum=1", "optimiser.minimum", "1 is above optimiser.lr=6e-05: the rate would rise"),
        ("name=a/b", "name", "without slashes"),
        ("name=''", "name", "without slashes"),
        ("name=..", "name", "without slashes"),
        ("data={margins: crop, crop_margins: [500, 12]}", "data.crop_margins", "[500, 12] hides all 512 rows"),
        ("data.image_margins.left=2018", "data.image_margins.left", "with right hides 2048 of the 2048 pixels"),
        ("teacher.alpha=2", "teacher.alpha", "less than or equal to 1"),
        ("extends=daformer", "extends", "unknown key"),
        ("name=5", "name", "string"),
    ],
)
def test_wrong_values(override: str, key: str, words: str) -> None:
    head, line, *more = refused("dacs", override).splitlines()
    assert "1 problem(s)" in head and not more
    assert line.startswith(f"  {OVERRIDE}: {key}: ") and words in line


def test_a_warm_up_longer_than_the_run_is_told() -> None:
    (text,) = [text for text in warnings(load("dacs", "train.iterations=1499").recipe) if "warmup" in text]
    assert "optimiser.warmup=1500 is longer than the run of 1499 iterations" in text
    assert not any("warmup" in text for text in warnings(load("dacs", "train.iterations=1500").recipe))


def test_a_huge_file_is_not_parsed(here: Path) -> None:
    path = write(here / "huge.yaml", "extends: dacs\nnotes: [" + "1, " * 400_000 + "1]\n")
    began = time.monotonic()
    assert f"{path}: 1.2 MB are too large for a recipe: at most 1 MB" in refused(path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("key", ["model.weights", "model.start", "data.source.root"])
def test_a_user_that_is_not_there(here: Path, key: str) -> None:
    loaded = load("dacs", "model.weights=none", f"{key}=~nosuchuser/x")
    problems = [problem.message for problem in missing_prerequisites(loaded.recipe)]
    assert any("~nosuchuser/x: there is no user 'nosuchuser' on this machine" in message for message in problems)


def test_views_that_need_a_target_and_have_none() -> None:
    message = refused("dacs", "data.target=null")
    assert "views.mixed: needs a target domain" in message and "--benchmark" in message
    assert "data.labelled: needs a target domain" in refused("oracle", "data.target=null")
    assert load("source_only", "data.target=null").recipe.data.target is None


def test_an_unknown_setting_of_the_default_part_is_refused() -> None:
    """Parts nobody wrote are completed with defaults; what somebody writes into them is still checked."""
    assert "unknown key 'temperature'" in refused("dacs", "data.sampler.temperature=1")


def test_the_flattened_tree_is_a_recipe_again() -> None:
    loaded = load("daformer", "seed=3", benchmark="streets")
    again = checked(yaml.safe_load(as_yaml(loaded.tree)), {})
    assert again.recipe == loaded.recipe and again.recipe.fingerprint() == loaded.recipe.fingerprint()
    assert list(again.recipe.views) == list(loaded.recipe.views)


def test_parts_are_stored_complete() -> None:
    recipe = load("daformer").recipe
    assert recipe.pseudo_labels == {"kind": "confidence_share", "threshold": 0.968, "share": "batch"}
    assert set(recipe.views["mixed"].options) >= {"jitter", "jitter_probability", "blur_probability"}


def test_benchmark_by_itself(here: Path) -> None:
    assert benchmark_data("streets").crop == (128, 128)
    write(here / "bad.yaml", "data: {sauce: {}, crop: 3}")
    with pytest.raises(UserError) as error:
        benchmark_data("bad.yaml")
    assert "3 problem(s)" in str(error.value) and "did you mean 'source'?" in str(error.value)
    write(here / "none.yaml", "crop: [1, 1]")
    with pytest.raises(UserError, match=r"data\.source: is missing"):
        benchmark_data("none.yaml")


# --- fingerprints and differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "runtime.workers=0",
        "runtime.device=cpu",
        "runtime.log_every=7",
        "train.batch=2",
        "seed=0",
        "train.compile=false",
    ],
)
def test_fingerprint_ignores_name_runtime_and_what_is_the_default_anyway(override: str) -> None:
    assert load("dacs", override).recipe.fingerprint() == load("dacs").recipe.fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "train.batch=4", "train.compile=true", "model.encoder=mit_b0",
        "model.decoder.dilations=[6, 12, 18, 24]",
        "data.crop=[512, 256]", "data.target.split=val", "data.target.root=/elsewhere", "views.mixed=null",
        "views.mixed.jitter=0.3", "views.mixed.terms.cross_entropy.weight=0.5", "pseudo_labels.threshold=0.9",
        "optimiser.lr=1e-4", "evaluation.every=10", "benchmark=streets", "teacher.alpha=0.9", "model.weights=none",
    ],
)  # fmt: skip
def test_fingerprint_sees_everything_else(override: str) -> None:
    assert load("dacs", override).recipe.fingerprint() != load("dacs").recipe.fingerprint()


def test_the_order_of_views_is_part_of_what_is_computed() -> None:
    """The random draws of a step are made view after view."""
    tree = load("dacs").tree
    turned = {**tree, "views": dict(reversed(tree["views"].items()))}
    one, other = (checked(t, {}).recipe for t in (tree, turned))
    assert list(other.views) == ["mixed", "source"] and one.fingerprint() != other.fingerprint()
    assert difference(one.model_dump(), other.model_dump()) == ["views: order source, mixed -> mixed, source"]


def test_the_file_a_value_comes_from_does_not_change_the_fingerprint(here: Path) -> None:
    path = write(here / "r.yaml", "extends: dacs\nseed: 4\nmodel: {encoder: {kind: resnet101}}")
    assert load(path).recipe.fingerprint() == load("dacs", "seed=4").recipe.fingerprint()


def test_difference_is_readable() -> None:
    old, new = load("dacs").recipe, load("dacs", "seed=1", "train.batch=4", "model.encoder=tiny").recipe
    assert difference(old.model_dump(), old.model_dump()) == []
    lines = difference(old.model_dump(), new.model_dump())
    assert "seed: 0 -> 1" in lines and "train.batch: 2 -> 4" in lines
    assert "model.encoder.kind: 'resnet101' -> 'tiny'" in lines
    assert difference({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> None", "b: None -> {'c': 2}"]


def test_default_weights_are_one() -> None:
    weights = load("daformer").recipe.views["source"].weights
    assert weights["cross_entropy"] == 1.0 and math.isclose(weights["feature_distance"], 0.005)
