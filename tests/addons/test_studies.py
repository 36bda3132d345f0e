"""Studies: the tables of the papers hold what was printed, and a wrong file is refused with file and key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import write_run
from unit.test_results import content, texts

from udaseg.config.layers import parse_override, shipped
from udaseg.config.load import benchmark_data, load
from udaseg.config.schema import Recipe
from udaseg.data.classes import CITYSCAPES, PROTOCOLS
from udaseg.errors import UserError
from udaseg.report import pages
from udaseg.report.grid import lay_out
from udaseg.report.results import scan
from udaseg.report.study import Row, Study, find, load_study, studies
from udaseg.report.summary import study_table, summarise
from udaseg.report.tables import comma_separated, latex, markdown

ALL = {name: load_study(name) for name in studies()}
SHIPPED = {name: study for name, study in ALL.items() if study.source}
"""Those of the papers' tables."""

TOTALS: dict[str, tuple[int, int, int, float, float]] = {
    "mrm_1_gta5": (11, 20, 220, 15427.0, 1738357.3),
    "mrm_1_synthia": (11, 17, 187, 11797.2, 1130109.1),
    "mrm_2a_embed_dim": (4, 1, 4, 219.3, 547.0),
    "mrm_2b_blocks": (4, 1, 4, 218.6, 542.0),
    "mrm_2c_mode": (3, 1, 3, 159.9, 323.6),
    "mrm_2d_grid": (4, 1, 3, 165.6, 329.7),
    "mrm_2e_objective": (5, 1, 5, 267.0, 810.5),
    "mrm_2f_weight": (5, 1, 5, 273.9, 816.1),
    "mrm_3_domain": (8, 1, 8, 491.9, 2341.2),
    "mrm_4_trained": (8, 1, 8, 494.1, 2351.5),
    "mrm_5_architectures": (10, 1, 10, 632.3, 3616.0),
    "mrm_6_position": (3, 3, 9, 920.89, 4534.57),
    "mrm_fig4_mask_ratio": (7, 1, 2, 108.0, 163.9),
    "omuda_1_gta5": (13, 20, 260, 15978.0, 2239740.2),
    "omuda_2_synthia": (12, 17, 204, 11339.1, 1242910.4),
    "omuda_3_gta5": (4, 1, 4, 273.6, 698.7),
    "omuda_3_synthia": (4, 1, 4, 238.7, 609.5),
    "omuda_4_components": (6, 20, 100, 6996.2, 356581.5),
    "omuda_5_sampling": (4, 1, 4, 284.9, 715.6),
    "omuda_6_masking": (4, 1, 4, 283.9, 712.1),
    "omuda_7_weight": (4, 1, 4, 281.7, 706.2),
    "t2s_02_gta5_dlv2": (18, 20, 360, 18240.7, 3524527.8),
    "t2s_03_gta5_mit": (9, 20, 161, 11741.5, 975819.7),
    "t2s_04_synthia_dlv2": (19, 18, 326, 16221.7, 2862508.3),
    "t2s_05_synthia_mit": (9, 18, 65, 4025.1, 137540.1),
    "t2s_06_dg": (9, 1, 9, 395.5, 2055.2),
    "t2s_06_dg_synthia": (2, 1, 0, 0, 0),
    "t2s_07_terms": (8, 1, 16, 557.0, 4480.5),
    "t2s_08_sampling": (4, 1, 8, 278.3, 1119.6),
    "t2s_09_reweighting": (3, 2, 12, 398.3, 2200.1),
    "t2s_10_objective": (6, 1, 6, 383.0, 1394.9),
    "t2s_11_engine": (11, 1, 22, 766.7, 8466.3),
    "t2s_12_weight": (4, 1, 8, 276.3, 1101.4),
    "t2s_13_temperature": (4, 1, 8, 278.9, 1114.5),
    "t2s_14_beta": (4, 1, 8, 279.8, 1116.9),
    "t2s_15_alpha": (3, 1, 6, 210.1, 632.1),
    "t2s_16_pairs": (5, 1, 10, 348.5, 1743.9),
    "t2s_17_source": (3, 20, 60, 4822.4, 147711.8),
}
"""Study -> rows, columns, numbers printed (deviations too), their sum (checked against a second reading of the papers),
and the sum of each times its place in the file, so that none can change or move."""

MISPRINTS = {
    ("mrm_1_gta5", "MIC w/ MRM"): 77.38,
    ("omuda_1_gta5", "DAFormer+FST"): 69.49,
    ("omuda_4_components", "+CAM"): 69.03,
    ("omuda_4_components", "+FDM"): 69.40,
    ("t2s_02_gta5_dlv2", "AdaptSeg"): 42.37,
    ("t2s_02_gta5_dlv2", "CAG"): 50.09,
    ("t2s_03_gta5_mit", "DAFormer (w/ FDA) †"): 68.29,
}
"""Rows whose printed mIoU is not the mean of their printed classes -> that mean."""

CELLS: list[tuple[str, str, str, float | str]] = [
    ("mrm_1_gta5", "PiPa", "road", 96.1),
    ("mrm_1_gta5", "DACS w/ MRM", "fence", 27.4),
    ("mrm_1_gta5", "MIC w/ MRM", "train", 85.4),
    ("mrm_1_gta5", "HRDA w/ MRM", "mIoU", 75.4),
    ("mrm_1_synthia", "GANDA", "sky", 93.8),
    ("mrm_1_synthia", "DAFormer w/ MRM", "bus", 63.1),
    ("mrm_1_synthia", "MIC w/ MRM", "bicycle", 65.3),
    ("mrm_2a_embed_dim", "768", "mIoU", 53.6),
    ("mrm_2b_blocks", "1", "mIoU", 55.4),
    ("mrm_2c_mode", "Masking", "mIoU", 51.9),
    ("mrm_2d_grid", "32", "mIoU", 54.1),
    ("mrm_2d_grid", "64", "mIoU", "OOM"),
    ("mrm_2e_objective", "feature rec. (w/ teacher)", "mIoU", 53.5),
    ("mrm_2e_objective", "feature rec. (w/o teacher)", "mIoU", 53.7),
    ("mrm_2f_weight", "10.0", "mIoU", 52.1),
    ("mrm_3_domain", "DACS/Source", "mIoU", 52.9),
    ("mrm_3_domain", "DAFormer/Source + Target", "mIoU", 69.0),
    ("mrm_4_trained", "DACS/Encoder", "mIoU", 54.9),
    ("mrm_4_trained", "DAFormer/Decoder", "mIoU", 69.1),
    ("mrm_5_architectures", "w/ MRM/RN101, DLV3+, DACS", "mIoU", 59.3),
    ("mrm_5_architectures", "w/o MRM/MiT-b3, DAFH, MIC", "mIoU", 73.6),
    ("mrm_6_position", "Input Space", "training FLOPs (G)", 364.68),
    ("mrm_6_position", "Latent Space (ours)", "training FLOPs (ratio)", 1.13),
    ("mrm_fig4_mask_ratio", "40 %", "mIoU", 55.9),
    ("omuda_1_gta5", "FADA", "traffic sign", 18.4),
    ("omuda_1_gta5", "IDM", "train", 81.2),
    ("omuda_1_gta5", "DAFormer+OMUDA", "traffic light", 59.7),
    ("omuda_2_synthia", "CCM", "sky", 77.4),
    ("omuda_2_synthia", "DAFormer+MICDrop", "vegetation", 86.7),
    ("omuda_2_synthia", "DAFormer+OMUDA", "bus", 64.2),
    ("omuda_3_gta5", "TQDM", "mIoU", 68.9),
    ("omuda_3_synthia", "TQDM", "mIoU", 58.0),
    ("omuda_4_components", "+CDM", "fence", 53.4),
    ("omuda_4_components", "All", "traffic light", 59.6),
    ("omuda_5_sampling", "RCS", "mIoU", 71.6),
    ("omuda_6_masking", "CAM 32 / 64", "mIoU", 70.9),
    ("omuda_7_weight", "0.005", "mIoU", 70.1),
    ("t2s_02_gta5_dlv2", "CBST", "bicycle", 42.8),
    ("t2s_02_gta5_dlv2", "T2S-DA (ours)", "train", 1.3),
    ("t2s_03_gta5_mit", "source only †", "wall", 29.8),
    ("t2s_03_gta5_mit", "T2S-DA (w/ MIC)", "motorcycle", 66.1),
    ("t2s_04_synthia_dlv2", "AdaptSeg", "traffic light", 9.9),
    ("t2s_04_synthia_dlv2", "SAC", "sky", 89.3),
    ("t2s_04_synthia_dlv2", "T2S-DA (ours)", "mIoU*", 65.4),
    ("t2s_05_synthia_mit", "T2S-DA (w/ DAFormer)", "sidewalk", 46.0),
    ("t2s_05_synthia_mit", "T2S-DA (w/ MIC)", "wall", 49.4),
    ("t2s_05_synthia_mit", "HRDA", "mIoU*", 72.4),
    ("t2s_06_dg", "MiT-B5/SHADE †, ECCV'22", "mIoU", 46.9),
    ("t2s_07_terms", "source → p. target; CE source, q source, k+ p. target", "mIoU", 69.0),
    ("t2s_08_sampling", "CBQS", "mIoU", 68.9),
    ("t2s_09_reweighting", "L_target", "mIoU (Tail)", 60.1),
    ("t2s_10_objective", "ResNet-101, DeepLab-V2/MSE", "mIoU", 58.6),
    ("t2s_11_engine", "with L_pull/GaussianBlur", "mIoU", 69.5),
    ("t2s_12_weight", "0.5", "mIoU", 68.2),
    ("t2s_13_temperature", "0.02", "mIoU", 69.3),
    ("t2s_14_beta", "0.5", "mIoU", 70.0),
    ("t2s_15_alpha", "90 %", "mIoU", 69.4),
    ("t2s_16_pairs", "n = 128, m = 2048", "mIoU", 68.8),
    ("t2s_17_source", "DAFormer", "sidewalk", 87.9),
]

DEVIATIONS = [
    ("t2s_07_terms", "p. target → source; CE p. target, q p. target, k+ source", [1.6]),
    ("t2s_09_reweighting", "none", [0.6, 1.1]),
    ("t2s_11_engine", "without L_pull/CyCADA (Hoffman et al., 2018)", [1.3]),
    ("t2s_13_temperature", "1", [0.1]),
]

RECIPES = {
    *("source_only", "oracle", "dacs", "daformer", "hrda", "mic", "daformer_dlv2", "mic_dlv2", "daformer_fda"),
    *("dacs_mrm", "daformer_mrm", "hrda_mrm", "mic_mrm"),
    *("daformer_omuda", "daformer_cam", "daformer_fdm", "daformer_cdm"),
    *("dacs_t2s_dlv2", "daformer_t2s", "hrda_t2s", "mic_t2s", "dg_source_only", "dg_t2s"),
}

GOOD = """
title: my own
benchmark: gta5_cityscapes
columns: [road, mIoU]
rows:
  - {label: one, recipe: dacs, published: [1, 2.5], std: [0.1, null]}
  - {label: two, recipe: dacs, overrides: [optimiser.lr=1e-4]}
"""


def row(study: str, name: str) -> Row:
    """The row with a label, or with ``group/label``."""
    (found,) = (r for r in SHIPPED[study].rows if name == (f"{r.group}/{r.label}" if r.group else r.label))
    return found


def printed(study: Study, row: Row) -> dict[str, float | str | None]:
    return dict(zip(study.columns, row.published or [], strict=bool(row.published)))


def mean(cells: dict[str, float | str | None], classes: tuple[str, ...]) -> float | None:
    """Of the classes, where all are printed."""
    values = [cells.get(name) for name in classes]
    numbers = [value for value in values if isinstance(value, float)]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


# --- what the papers print ---------------------------------------------------------------------------------------


def test_every_table_is_there() -> None:
    assert set(SHIPPED) == set(TOTALS)


@pytest.mark.parametrize("name", TOTALS)
def test_every_number_counts(name: str) -> None:
    study = SHIPPED[name]
    cells = [cell for r in study.rows for cell in [*(r.published or []), *(r.std or [])] if isinstance(cell, float)]
    placed = sum(place * cell for place, cell in enumerate(cells, 1))
    assert (len(study.rows), len(study.columns), len(cells), round(sum(cells), 2), round(placed, 2)) == TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_printed_means_are_those_of_the_printed_classes(name: str) -> None:
    study = SHIPPED[name]
    for r in study.rows:
        cells = printed(study, r)
        for column, protocol in (("mIoU", benchmark_data(study.benchmark).protocol), ("mIoU*", "synthia13")):
            computed = mean(cells, PROTOCOLS[protocol])
            if computed is not None and isinstance(cells.get(column), float):
                wanted = MISPRINTS.get((name, r.label)) if column == "mIoU" else None
                tolerance = 0.11 if wanted is None else 0.005
                assert computed == pytest.approx(wanted or cells[column], abs=tolerance), (r.label, column)


@pytest.mark.parametrize(("name", "label"), MISPRINTS)
def test_misprints_are_misprints(name: str, label: str) -> None:
    assert MISPRINTS[name, label] != pytest.approx(printed(SHIPPED[name], row(name, label))["mIoU"], abs=0.1)


@pytest.mark.parametrize("name", TOTALS)
def test_classes_are_those_of_the_protocol_in_its_order(name: str) -> None:
    study = SHIPPED[name]
    classes = tuple(column for column in study.columns if column in CITYSCAPES.names)
    assert classes in ((), PROTOCOLS[benchmark_data(study.benchmark).protocol])
    assert set(study.columns) - set(classes) <= {
        *("mIoU", "mIoU*", "mIoU (Tail)", "training FLOPs (G)", "training FLOPs (ratio)")
    }


@pytest.mark.parametrize(("name", "label", "column", "value"), CELLS)
def test_a_cell(name: str, label: str, column: str, value: float | str) -> None:
    assert printed(SHIPPED[name], row(name, label))[column] == value


@pytest.mark.parametrize(("name", "label", "values"), DEVIATIONS)
def test_a_deviation(name: str, label: str, values: list[float]) -> None:
    assert row(name, label).std == values


def test_rows_of_several_tables_agree() -> None:
    """A method's row is copied from paper to paper; here are those that are the same in all."""
    for benchmark, others in (("gta5", ("t2s_03_gta5_mit", "omuda_1_gta5")), ("synthia", ("omuda_2_synthia",))):
        here = f"mrm_1_{benchmark}"
        for other in others:
            assert row(here, "DAFormer").published == row(other, "DAFormer").published
    assert row("mrm_1_gta5", "DACS").published == row("t2s_02_gta5_dlv2", "DACS").published
    assert row("mrm_1_gta5", "HRDA").published == row("t2s_03_gta5_mit", "HRDA").published
    assert row("omuda_1_gta5", "FADA").published == row("t2s_02_gta5_dlv2", "FADA").published


# --- what can be run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOTALS)
def test_rows_name_recipes_sections_and_the_command(name: str) -> None:
    study = SHIPPED[name]
    assert study.source is not None and study.benchmark in shipped("benchmarks")
    assert f"#   udaseg ablate {name}\n" in studies()[name].read_text(encoding="utf-8")
    for r in study.rows:
        assert r.recipe in {None, *RECIPES}
        assert {parse_override(text)[0][0] for text in r.overrides} <= set(Recipe.model_fields)


@pytest.mark.parametrize("name", ALL)
def test_every_row_with_a_recipe_loads(name: str) -> None:
    """Its overrides, too, on the study's benchmark."""
    study = ALL[name]
    for r in study.rows:
        if r.recipe is not None:
            assert load(r.recipe, benchmark=study.benchmark, overrides=r.overrides).recipe.name == r.recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_no_run_stands_for_two_rows_of_a_column(name: str) -> None:
    runs = [(r.group, r.recipe, tuple(r.overrides)) for r in SHIPPED[name].rows if r.recipe]
    assert len(set(runs)) == len(runs)


def test_every_planned_recipe_is_compared_with_something() -> None:
    assert {r.recipe for name in TOTALS for r in SHIPPED[name].rows if r.recipe} == RECIPES


@pytest.mark.parametrize("name", sorted({*ALL} - {*SHIPPED}))
def test_our_own_say_how_they_are_run(name: str) -> None:
    assert all(r.published is None for r in ALL[name].rows)
    assert f"#   udaseg ablate {name.replace('_', '-')} " in studies()[name].read_text(encoding="utf-8")


# --- what is shared and what is measured ---------------------------------------------------------------------------


def test_table_17_trains_nothing_that_table_3_has_not() -> None:
    runs = [{cell.folder for cell in lay_out(SHIPPED[name]).runs()} for name in ("t2s_17_source", "t2s_03_gta5_mit")]
    assert runs[0] < runs[1] and SHIPPED["t2s_17_source"].domain == "source"


def test_all_rows_of_omudas_components_train_with_batch_3() -> None:
    cells = lay_out(SHIPPED["omuda_4_components"], seeds=[0]).cells
    assert [cell.loaded.recipe.train.batch for cell in cells] == [3] * 6
    readings = [[term["beta"] for stage in cell.loaded.recipe.views.values() for name, term in stage.terms.items()
                 if name == "class_decoupled_cross_entropy"] for cell in cells[-2:]]  # fmt: skip
    assert readings == [["disagreement"] * 2, ["agreement"] * 2]
    assert cells[-1].row.published is None and "(ours)" in cells[-1].row.label


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("t2s")])
def test_studies_of_dacs_say_which_dacs(name: str) -> None:
    recipes = {row.recipe for row in SHIPPED[name].rows}
    header = " ".join(studies()[name].read_text(encoding="utf-8").partition("\ntitle:")[0].replace("#", "").split())
    assert ("as in the DAFormer repository: 40,000 iterations with AdamW" in header) == any(
        str(recipe).startswith("dacs") for recipe in recipes
    )
    assert any("AdamW" in note for note in SHIPPED[name].notes) == ("dacs" in recipes)


def test_the_tail_is_the_classes_whose_mean_was_printed() -> None:
    """Rows of two tables with one network: T2S-DA with DAFormer, mIoU 70.0; the ten things would give 68.7."""
    tail = SHIPPED["t2s_09_reweighting"].means["mIoU (Tail)"]
    iou = printed(SHIPPED["t2s_03_gta5_mit"], row("t2s_03_gta5_mit", "T2S-DA (w/ DAFormer)"))
    table = printed(SHIPPED["t2s_09_reweighting"], row("t2s_09_reweighting", "L_pull"))
    assert iou["mIoU"] == table["mIoU"] == 70.0
    assert sum(float(iou[name]) for name in tail) / len(tail) == pytest.approx(table["mIoU (Tail)"], abs=0.05)
    assert set(tail) <= set(CITYSCAPES.names) and len(tail) == 9


def test_training_flops_are_counted_for_rows_with_runs(tmp_path: Path) -> None:
    """Supplement of MRM, Table 6: 182.34 G and 2.00 times; 1.13 times is not exceeded."""
    cells = lay_out(SHIPPED["mrm_6_position"], seeds=[0]).cells
    for cell in cells[1:]:
        write_run(tmp_path / cell.row.label, fingerprint=cell.loaded.recipe.fingerprint())
    table = study_table(summarise("mrm_6_position", scan(tmp_path)))
    ours = {line[0].text: line[-2:] for line in table.rows if line[1].text == "reproduced"}
    masked_input, latent = ours["Input Space"], ours["Latent Space (ours)"]
    assert masked_input[0].value == pytest.approx(364.68, rel=0.01) and masked_input[1].number() == "2.00"
    assert latent[1].value is not None and 1.03 < latent[1].value <= 1.13 and "w/o MRM" not in ours
    assert not any(cell.mark for cells in ours.values() for cell in cells)


# --- overrides -----------------------------------------------------------------------------------------------------


def test_a_setting_of_the_contrast_reaches_all_rows_of_table_7_or_none() -> None:
    """Table 7 puts the term on three views."""
    study, text = SHIPPED["t2s_07_terms"], "contrast.reduction=sum"
    cells = lay_out(study, seeds=[0], overrides=[f"terms.{text}"]).cells
    found = [term.get("reduction") for cell in cells for stage in cell.loaded.recipe.views.values()
             for name, term in stage.terms.items() if name == "contrast"]  # fmt: skip
    assert len(found) == 6 and set(found) == {"sum"} and len(cells) == 8
    with pytest.raises(UserError, match="changes 2 rows of the study and misses 4") as error:
        summarise("t2s_07_terms", [], overrides=[f"views.stylised.terms.{text}"])
    assert f"give terms.{text} " in str(error.value)
    assert "target → source; CE source, q target, k+ source: views.target.terms.contrast.reduction" in str(error.value)


def test_looks_given_to_table_6_leave_the_baseline_in_it() -> None:
    text = "views.stylised.engine.use=[A]"
    laid = lay_out(SHIPPED["t2s_06_dg"], seeds=[0], overrides=[text])
    baseline = laid.cells[0].loaded.recipe
    assert not laid.left_out and "stylised" not in baseline.views
    assert {tuple(c.loaded.recipe.views["stylised"].options["engine"]["use"]) for c in laid.cells[1:]} == {("A",)}
    assert laid.left_alone[text][0] == laid.cells[0].row.name
    summary = summarise("t2s_06_dg", [], overrides=[text])
    assert any(note.startswith(f"Not changed by {text}") for note in study_table(summary).notes)


# --- files of one's own ------------------------------------------------------------------------------------------


def own(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_at_a_path(tmp_path: Path) -> None:
    study = load_study(own(tmp_path, GOOD))
    assert (study.seeds, study.protocol, study.source) == ([0, 1, 2], None, None)
    assert study.rows[0].published == [1.0, 2.5] and study.rows[0].std == [0.1, None]
    assert study.rows[1].published is None and study.rows[1].overrides == ("optimiser.lr=1e-4",)


WRONG = [
    ("title: my own\n", "", "title: is missing"),
    ("columns", "colums", "colums: unknown key 'colums'; did you mean 'columns'?"),
    ("benchmark:", "protocol: cityscape19\nbenchmark:", "protocol: unknown protocol 'cityscape19'; did you mean"),
    ("benchmark:", "seeds: [0, 0]\nbenchmark:", "seeds: 0 occurs twice"),
    ("benchmark:", "seeds: [-1]\nbenchmark:", "seeds.0: -1 is not allowed: input should be greater"),
    ("benchmark:", "source: {paper: X}\nbenchmark:", "source.table: is missing"),
    ("[road, mIoU]", "[road, road]", "columns: 'road' occurs twice"),
    ("two", "one", "rows: label 'one' occurs twice"),
    ("[1, 2.5]", "[1]", "rows.'one'.published: 1 values for 2 columns; null stands for a missing one"),
    ("[1, 2.5]", "[1, x]", "rows.'one'.published.1: 'x' is not allowed: a number, OOM or null"),
    ("[1, 2.5]", '[1, "2.5"]', "rows.'one'.published.1: '2.5' is not allowed"),
    ("[1, 2.5]", "[1, true]", "rows.'one'.published.1: True is not allowed"),
    ("[1, 2.5]", "[1, .nan]", "rows.'one'.published.1: nan is not allowed"),
    ("[0.1, null]", "[0.1]", "rows.'one'.std: 1 values for 2 columns"),
    ("published: [1, 2.5], ", "", "rows.'one'.std: needs published values"),
    ("recipe: dacs, overrides", "overrides", "rows.'two'.overrides: need a recipe"),
    ("{label: two, recipe: dacs, overrides: [optimiser.lr=1e-4]}", "{label: two}", "rows.'two'.recipe: is missing"),
    ("optimiser.lr=1e-4", "optimiser.lr", "rows.'two'.overrides: override 'optimiser.lr': expected key=value"),
    ("benchmark:", "means: {mIuO: [road]}\nbenchmark:", "means.mIuO: is no column; did you mean 'mIoU'"),
    ("benchmark:", "means: {mIoU: []}\nbenchmark:", "means.mIoU: [] is not allowed"),
    ("benchmark:", "domain: val\nbenchmark:", "domain: 'val' is not allowed"),
    ("optimiser.lr=1e-4", "seed=3", "rows.'two'.overrides: 'seed=3': it is the whole study's"),
    ("overrides:", "override:", "rows.'two'.override: unknown key 'override'; did you mean 'overrides'?"),
    ("label: two, ", "", "rows.2.label: is missing"),
    ("- {label: two, recipe: dacs, overrides: [optimiser.lr=1e-4]}", "- two", "rows.2: 'two' is not allowed"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_wrong_file_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = own(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_study(path)
    assert f"  {path}: {message}" in str(error.value)


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study 'mine' has 3 problem\(s\)"):
        load_study(own(tmp_path, GOOD.replace("[1, 2.5]", "[1]").replace("two", "one").replace("lr=1e-4", "lr=")))


def test_same_labels_in_different_groups(tmp_path: Path) -> None:
    assert load_study(own(tmp_path, GOOD.replace("label: two", "group: b, label: one")))


@pytest.mark.parametrize(
    ("text", "message"),
    [("title: [", "not valid YAML"), ("[1]", "a study is a map of keys"), ("a: 1\na: 2", "'a' occurs twice")],
)
def test_what_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_study(own(tmp_path, text))


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no study 'mrm_1_gt5'.*did you mean 'mrm_1_gta5'.*`udaseg ablate --list`"):
        load_study("mrm_1_gt5")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mask-ratio", "mrm_fig4_mask_ratio"), ("mask_ratio", "mrm_fig4_mask_ratio"), ("FIG4", "mrm_fig4_mask_ratio"),
        ("mrm_1_gta5", "mrm_1_gta5"), ("mrm_1_gta5.yaml", "mrm_1_gta5"), ("t2s-07", "t2s_07_terms"),
    ],
)  # fmt: skip
def test_a_part_of_a_name_is_enough(name: str, wanted: str) -> None:
    assert find(name).stem == wanted


def test_what_several_names_have_is_refused_with_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"study '1-' may be .*write more") as error:
        find("1-")
    assert all(name in str(error.value) for name in ("mrm_1_gta5", "mrm_1_synthia", "omuda_1_gta5", "t2s_11_engine"))
    monkeypatch.chdir(tmp_path)
    Path("gta5.yaml").write_text(GOOD, encoding="utf-8")
    assert find("gta5.yaml") == Path("gta5.yaml")


def test_studies_need_no_torch() -> None:
    code = "import sys, udaseg.report.study as s; s.load_study('mrm_1_gta5'); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_every_shipped_study_has_a_page_and_tables() -> None:
    drawn = {}
    for name in studies():
        part = pages.study_part(summarise(name, []), runs=Path("runs"))
        drawn[name] = len(part.charts)
        assert latex(part.table) and markdown(part.table) and comma_separated(part.table)
        for _, source in part.charts:
            assert "mIoU, %" in texts(content(source))
    assert drawn["t2s_12_weight"] == drawn["mrm_2f_weight"] == drawn["t2s_15_alpha"] == 1
    assert drawn["mrm_1_gta5"] == drawn["mrm_2c_mode"] == 0


def test_a_recipe_may_lie_beside_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is given; a shipped name stays a name, and so does what is no file there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables").mkdir()
    for name in ("ours.yaml", "dacs"):
        (tmp_path / "tables" / name).write_text("extends: dacs\n")
    rows = [{"label": name, "recipe": name} for name in ("ours.yaml", "dacs", "elsewhere.yaml")]
    study = {"title": "t", "benchmark": "streets", "rows": rows}
    (tmp_path / "tables" / "mine.yaml").write_text(json.dumps(study))
    found = [row.recipe for row in load_study("tables/mine.yaml").rows]
    assert found == ["tables/ours.yaml", "dacs", "elsewhere.yaml"]
