"""The command line: each command parses, calls one function, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option, Typer

from udaseg import commands
from udaseg.errors import UserError

UNUSABLE_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EFBIG,
}  # fmt: skip
"""Errors of the system about a path that the user gave us to read or write; any other is a fault of the program."""
HELP = "Unsupervised domain-adaptive semantic segmentation. Start with: udaseg demo"
app = Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
recipe_app = Typer(help="List, show, copy and check recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
analyze_app = Typer(help="Features and trainings of runs by class: a CSV file and a picture.", no_args_is_help=True)
app.add_typer(analyze_app, name="analyze")

STUDY = "A study's name or part of it (udaseg ablate --list), or a path to a YAML file."
RECIPE = "A recipe's name (udaseg recipe ls) or a path to a YAML file."
STUDIES = (
    "Studies (udaseg ablate --list) or paths to YAML files; none: all runs in the folder. Give the overrides their "
    "runs were started with, if any."
)
SAVE = "Repeatable; default: index (train ids in a palette PNG) and overlay. Probabilities are large."
FREE_NAME = "nothing is overwritten, the next free name is used."


def offer(what: str) -> Callable[[str], list[str]]:
    """For the shell's Tab: the names of a function in `commands.completing` that begin with the word."""
    return lambda incomplete: [name for name in getattr(commands.completing, what)() if name.startswith(incomplete)]


recipe_option = partial(Option, "--recipe", "-r", autocompletion=offer("recipes"))
benchmark_option = partial(Option, "--benchmark", "-b", autocompletion=offer("benchmarks"))
protocol_option = partial(Option, "--protocol", autocompletion=offer("protocols"))
Name = Annotated[str, Argument(help=RECIPE, autocompletion=offer("recipes"))]
RecipeOption = Annotated[str, recipe_option(help=RECIPE)]
Benchmark = Annotated[str | None, benchmark_option(help="Data, sizes, classes, protocol: udaseg recipe ls.")]
Dataset = Annotated[
    str,
    Argument(help="gta5, cityscapes, ... or a YAML file that describes a folder.", autocompletion=offer("datasets")),
]
BenchmarkName = Annotated[
    str,
    Argument(
        help="A benchmark's name (udaseg recipe ls) or a path to a YAML file.", autocompletion=offer("benchmarks")
    ),
]
Study = Annotated[str | None, Argument(help=STUDY, autocompletion=offer("studies"))]
StudyNames = Annotated[
    list[str] | None,
    Argument(metavar="[STUDY]... [KEY=VALUE]...", help=STUDIES, autocompletion=offer("studies")),
]
Overrides = Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Override values: train.batch=4.")]
Run = Annotated[Path, Argument(help="A run folder or a weights file.")]
Runs = Annotated[list[Path], Argument(metavar="RUN...", help="Run folders or weights files to compare.")]
Weights = Annotated[Path, Argument(metavar="WEIGHTS_OR_RUN", help="A weights file or a run folder.")]
Root = Annotated[Path | None, Option(help="Folder of the data set; default: under $UDASEG_DATA or ./data.")]
Json = Annotated[bool, Option("--json", help="One line of JSON instead of a table.")]
Domain = Annotated[str, Option(help="source, target or validation: whose labelled images.")]
CsvOut = Annotated[Path | None, Option("--out", help="The .csv file; the picture gets its name with .png.")]
TeacherOption = Annotated[bool, Option("--teacher", help="The teacher instead of the student.")]
Limit = Annotated[int | None, Option(min=1, help="Only the first N images of a domain.")]
Seed = Annotated[int, Option(min=0, max=2**32 - 1)]
Plugins = Annotated[
    list[str] | None, Option("--plugin", metavar="FILE|MODULE", help="Components of your own. Repeatable.")
]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: problems a user can fix become a message and exit code 2, an interrupt 128 + its signal."""
    open_streams()
    try:
        app(arguments)
    except UserError as error:
        fail(str(error), error.code)
    except OSError as error:
        if error.errno not in UNUSABLE_PLACE:
            raise
        fail(f"{error.filename or 'writing'}: {error.strerror}; choose another path or make this one usable", 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def open_streams() -> None:
    """Output that nobody reads goes nowhere, and a terminal without our characters gets question marks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - to the end of the program
        elif hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")


def fail(message: str, code: int) -> None:
    from rich.text import Text

    from udaseg.console import err

    err.print(Text.assemble(("error:", "red"), f" {message}"))
    sys.exit(code)


def print_version(wanted: bool) -> None:
    if wanted:
        import udaseg

        print(f"udaseg {udaseg.__version__}")
        raise Exit


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=print_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    """What goes before the command."""


@app.command()
def demo(
    quick: Annotated[bool, Option("--quick", help="The same path in under a minute, promising no margin.")] = False,
    recipe: Annotated[str | None, recipe_option(help="Use another recipe, at the demo's size.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, Option(help="Folder for runs, picture and page; default: runs/demo-...")] = None,
) -> None:
    """Generate two domains, train, adapt, compare, draw. No download, no GPU, a few minutes."""
    if recipe is not None:
        refuse_typos(recipe, "streets")
    interruptible(lambda: commands.demo.run_demo(quick=quick, recipe=recipe, seed=seed, folder=out))


@app.command()
def prepare(
    dataset: Dataset,
    root: Root = None,
    workers: Annotated[int | None, Option(min=1, help="Processes; default: all cores.")] = None,
    strict: Annotated[bool, Option("--strict", help="Anything left out is an error.")] = False,
    archives: Annotated[Path | None, Option(help="First unpack the official zips in this folder.")] = None,
    cache: Annotated[str | None, Option(metavar="WxH", help="Also copy it at a recipe's data size: 1280x720.")] = None,
    size: Annotated[str, Option(help="streets: width x height of the scenes.")] = "256x128",
    gap: Annotated[float, Option(min=0, max=1, help="streets: how far apart the styles of the domains are.")] = 0.5,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="streets: which scenes.")] = 0,
) -> None:
    """Check a data set, count its classes, write its index (never into the data set itself)."""
    copy = commands.prepare.parse_size(cache, 1, "--cache") if cache else None
    if dataset == "streets" and archives is None:
        commands.prepare.prepare_streets(root, size=size, gap=gap, seed=seed, workers=workers, copy=copy)
    else:
        commands.prepare.prepare_dataset(dataset, root, workers=workers, strict=strict, packed=archives, size=copy)


@app.command()
def check(
    benchmark: BenchmarkName,
    recipe: Annotated[str, recipe_option(help="Whose settings are compared with the data.")] = "daformer",
    out: Annotated[Path | None, Option(help="Picture; default: check-<benchmark>.png.")] = None,
) -> None:
    """Pairs, class shares of both domains, settings that do not fit the data, and a picture of 12 images."""
    refuse_typos(recipe, benchmark)
    commands.check.check_benchmark(benchmark, recipe, out)


@app.command()
def train(
    overrides: Overrides = None,
    recipe: Annotated[str | None, recipe_option(help="Name or path; left out with --resume --out.")] = None,
    benchmark: Benchmark = None,
    seed: Annotated[int | None, Option(min=0)] = None,
    out: Annotated[Path | None, Option(help="Run folder; default: runs/<recipe>-<benchmark>-seed<N>.")] = None,
    resume: Annotated[bool, Option("--resume", help="Insist on continuing a run that is there.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="3 real steps, 1 validation image; what a run costs.")] = False,
    plugin: Plugins = None,
) -> None:
    """Train a recipe. The same command again continues an unfinished run and leaves a finished one alone."""
    if recipe is not None:
        refuse_typos(recipe, benchmark, overrides)
    from udaseg.engine.runs import choose_recipe

    loaded = choose_recipe(recipe, benchmark, seed, overrides or [], out, resume, plugin or [])
    if dry_run:
        commands.train.dry_run(loaded)
    else:
        interruptible(lambda: commands.train.train(loaded, out, resume))


@app.command()
def evaluate(
    run: Run,
    protocol: Annotated[
        str | None, protocol_option(help="cityscapes19, synthia16 or synthia13; default: the recipe's.")
    ] = None,
    teacher: TeacherOption = False,
    domain: Domain = "validation",
    split: Annotated[str | None, Option(help="Default: the split of the domain in the recipe.")] = None,
    benchmark: Benchmark = None,
    recompute_bn: Annotated[
        bool, Option("--recompute-bn", help="First recompute BatchNorm statistics on the unlabelled target.")
    ] = False,
    bn_images: Annotated[int, Option(min=1, help="How many of its images for that, drawn evenly.")] = 64,
    precision: Annotated[str, Option(help="fp32, as published scores are, or bf16: faster on a GPU.")] = "fp32",
    limit: Limit = None,
    per_condition: Annotated[
        bool, Option("--per-condition", help="Also by fog, night, rain and snow, where folders tell (ACDC).")
    ] = False,
    json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Per-class IoU and mIoU on labelled images at full label resolution."""
    use(plugin)
    if benchmark is not None:
        from udaseg.config.layers import chain

        chain(benchmark, "benchmarks")  # a wrong name is told before torch is imported
    commands.evaluate.evaluate(
        run, protocol=protocol, teacher=teacher, split=split, benchmark=benchmark, domain=domain,
        recompute_bn=recompute_bn, bn_images=bn_images, precision=precision, limit=limit, per_condition=per_condition,
        as_json=json,
    )  # fmt: skip


@app.command()
def report(
    studies: StudyNames = None,
    form: Annotated[
        str | None, Option("--format", "-f", help="terminal, md, latex, csv or html; default: terminal, or by --out.")
    ] = None,
    out: Annotated[Path | None, Option(help=f"File; {FREE_NAME}")] = None,
    runs: Annotated[Path, Option(help="Folder with the run folders, at any depth.")] = Path("runs"),
    benchmark: Benchmark = None,
    plugin: Plugins = None,
) -> None:
    """Published and reproduced numbers of studies side by side; without a name, an overview of all runs."""
    commands.report.make_report(
        studies or [], form=form, out=out, folder=runs, benchmark=benchmark, plugins=plugin or []
    )


@app.command()
def plot(
    kind: Annotated[str, Argument(help="curves, classes, confusion or panels (image, truth, predictions).")],
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path | None, Option(help=f".png or .pdf; {FREE_NAME}")] = None,
    protocol: Annotated[str | None, protocol_option(help="classes: which ones; default: the run's protocol.")] = None,
    images: Annotated[
        str,
        Option(
            metavar="N|NAME,...",
            help="panels: how many, the most improved and most degraded from first to last run; or names of images.",
        ),
    ] = "6",
) -> None:
    """Figures of runs for papers and talks."""
    commands.plot.plot_runs(kind, runs, out=out, protocol=protocol, images=images)


@app.command("import")
def import_(
    file: Annotated[Path, Argument(help="A public checkpoint of the DAFormer family: .pth or .safetensors.")],
    teacher: Annotated[
        bool, Option("--teacher/--student", help="Which network; the published scores are the student's.")
    ] = False,
    out: Annotated[Path | None, Option(help="A new file; default: <name>-<network>.safetensors here.")] = None,
    benchmark: Annotated[
        str, benchmark_option(help="What it was trained on: classes, sizes, protocol.")
    ] = "gta5_cityscapes",
    encoder: Annotated[str | None, Option(help="Instead of the recognised one, as in mit_b5.")] = None,
    decoder: Annotated[str | None, Option(help="Instead of the recognised one, as in daformer.")] = None,
) -> None:
    """A public DAFormer, HRDA or MIC checkpoint as a weights file that every command understands."""
    commands.importing.import_checkpoint(
        file, teacher=teacher, out=out, benchmark=benchmark, encoder=encoder, decoder=decoder
    )


@app.command()
def submit(
    benchmark: Annotated[str, Argument(help="cityscapes, acdc or dark-zurich.", autocompletion=offer("servers"))],
    run: Run,
    out: Annotated[Path | None, Option(help="The zip; default: <benchmark>-<run>.zip.")] = None,
    teacher: TeacherOption = False,
    root: Root = None,
    plugin: Plugins = None,
) -> None:
    """Predict a test split and pack the zip for its server. Stopped: the same command continues."""
    use(plugin)
    commands.submit.submit(benchmark, run, target=out, teacher=teacher, root=root)


@app.command()
def predict(
    weights: Weights,
    inputs: Annotated[list[str], Argument(help="Images, videos, folders, or globs in quotes.")],
    out: Annotated[Path | None, Option(help="Folder; default: predictions/<name of the weights>.")] = None,
    save: Annotated[list[str] | None, Option(metavar="index|color|overlay|probabilities", help=SAVE)] = None,
    teacher: TeacherOption = False,
    plugin: Plugins = None,
) -> None:
    """Label maps for images of any size. The same command again goes on; nothing is overwritten."""
    use(plugin)
    commands.predict.predict_files(weights, inputs, folder=out, save=save or [], teacher=teacher)


@app.command()
def export(
    weights: Weights,
    form: Annotated[
        Literal["safetensors", "torch", "onnx"], Option("--format", help="Plain weights, torch.export (.pt2), or ONNX.")
    ],
    out: Annotated[Path | None, Option(help="File; default: <name of the weights>.<suffix>.")] = None,
    size: Annotated[str | None, Option(metavar="WxH", help="Of the images; default: that of training.")] = None,
    teacher: TeacherOption = False,
    plugin: Plugins = None,
) -> None:
    """One file that runs without udaseg: pixels in, logits out, compared with the network it was made from."""
    use(plugin)
    commands.export.export_weights(weights, form=form, target=out, size=size, teacher=teacher)


@app.command()
def ablate(
    study: Study = None,
    overrides: Overrides = None,
    seeds: Annotated[str | None, Option(help="As in 0,1,2; default: the study's.")] = None,
    only: Annotated[str | None, Option(metavar="ROW", help="Only the rows with that in their name.")] = None,
    benchmark: Benchmark = None,
    executor: Annotated[
        str, Option(help="local: child processes, one a GPU; inline: in this process; slurm: a job a run.")
    ] = "local",
    jobs: Annotated[int | None, Option(min=1, help="Runs at a time; default: one a GPU, one on the CPU.")] = None,
    retry: Annotated[bool, Option("--retry", help="Failed runs, too; else they are left as they are.")] = False,
    status: Annotated[bool, Option("--status", help="Only show how far each run is.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only list the runs with hours and disk.")] = False,
    names: Annotated[bool, Option("--list", help="List all studies.")] = False,
    out: Annotated[Path | None, Option(help="Folder for the runs of all studies; default: runs/cells.")] = None,
    plugin: Plugins = None,
) -> None:
    """Train all rows of a study with all seeds. The same command again goes on; nothing is trained twice."""
    if names:
        return commands.ablate.listing()
    if study is None:
        raise UserError("which study? udaseg ablate --list lists them; or give a path to a YAML file")
    from udaseg.report.study import load_study

    load_study(study)  # what is wrong with it is told before torch is imported
    grid = commands.ablate.choose(
        study, seeds=seeds, only=only, benchmark=benchmark, overrides=overrides or [], folder=out,
        plugins=plugin or [],
    )  # fmt: skip
    if status:
        commands.ablate.status(*grid)
    elif dry_run:
        commands.ablate.dry_run(*grid, out)
    else:
        interruptible(lambda: commands.ablate.train_study(*grid, executor=executor, jobs=jobs, retry=retry, folder=out))


@app.command()
def profile(
    recipe: RecipeOption,
    overrides: Overrides = None,
    benchmark: Benchmark = None,
    steps: Annotated[int, Option(min=1)] = 5,
    json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Time, multiply-adds and memory of a step, by phase."""
    refuse_typos(recipe, benchmark, overrides)
    from udaseg.engine.runs import choose_recipe

    commands.train.profile(
        choose_recipe(recipe, benchmark, overrides=overrides or [], plugins=plugin or []), steps, json
    )


@app.command()
def models(
    pattern: Annotated[str | None, Argument(help="Part of a name, or a pattern as in 'timm/*dinov2*'.")] = None,
    json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Encoders and decoders: parameters, strides, image sizes, weights and their licences."""
    use(plugin)
    commands.models.list_models(pattern, json)


@app.command()
def new(
    kind: Annotated[str, Argument(help="term, view, masker, sampler, engine, encoder or decoder.")],
    name: Annotated[str, Argument(help="Of the component, its file and its folder: my_loss.")],
) -> None:
    """A component of your own in a new folder: working code, recipe, study and test. No fork is needed."""
    commands.new.make(kind, name)


@app.command()
def doctor() -> None:
    """Check versions, the torch/torchvision pair, device, disk and data folders."""
    commands.doctor.examine_and_print()


@recipe_app.command("ls")
def recipe_ls() -> None:
    """All shipped recipes and benchmarks, with what they are for."""
    commands.recipes.listing()


@recipe_app.command("show")
def recipe_show(name: Name, overrides: Overrides = None, benchmark: Benchmark = None, plugin: Plugins = None) -> None:
    """A recipe flattened, with the file each value came from, and the passes of a step."""
    refuse_typos(name, benchmark, overrides)
    from udaseg.config.load import load

    commands.recipes.show(load(name, benchmark=benchmark, overrides=overrides or [], plugins=plugin or []))


@recipe_app.command("cp")
def recipe_cp(name: Name, target: Annotated[Path, Argument(help="The new file; must not exist.")]) -> None:
    """Copy a recipe to a file of your own."""
    commands.recipes.copy(name, target)


@recipe_app.command("validate")
def recipe_validate(
    name: Name, overrides: Overrides = None, benchmark: Benchmark = None, plugin: Plugins = None
) -> None:
    """Check a recipe without touching data; everything that is wrong is listed at once."""
    from udaseg.config.layers import flatten

    flatten(name, benchmark=benchmark, overrides=overrides or [])  # no such file, no YAML: told without torch
    from udaseg.config.load import load

    commands.recipes.validate(load(name, benchmark=benchmark, overrides=overrides or [], plugins=plugin or []))


@recipe_app.command("assumptions")
def recipe_assumptions(plugin: Plugins = None) -> None:
    """What the papers leave open: our reading, the keys that change it, what it rests on (Markdown)."""
    use(plugin)
    commands.recipes.assumptions()


@analyze_app.command("similarity")
def analyze_similarity(
    run: Runs,
    out: CsvOut = None,
    benchmark: Benchmark = None,
    teacher: TeacherOption = False,
    limit: Limit = None,
    plugin: Plugins = None,
) -> None:
    """How alike the mean features of a class are in source and target (cosine)."""
    use(plugin)
    commands.analyze.similarity(run, out, benchmark=benchmark, teacher=teacher, limit=limit)


@analyze_app.command("discriminability")
def analyze_discriminability(
    run: Runs,
    out: CsvOut = None,
    domain: Domain = "validation",
    benchmark: Benchmark = None,
    teacher: TeacherOption = False,
    limit: Limit = None,
    plugin: Plugins = None,
) -> None:
    """Class centre distance (CCD) and pixel-wise discrimination distance (PDD) of the features; less is better."""
    use(plugin)
    commands.analyze.discriminability(run, out, domain, benchmark=benchmark, teacher=teacher, limit=limit)


@analyze_app.command("tsne")
def analyze_tsne(
    run: Runs,
    out: CsvOut = None,
    pixels: Annotated[int, Option(min=1, help="Cells a class and domain.")] = 256,
    seed: Seed = 0,
    benchmark: Benchmark = None,
    teacher: TeacherOption = False,
    limit: Limit = None,
    plugin: Plugins = None,
) -> None:
    """Features of source and target in the plane by t-SNE (needs the extra `analysis`)."""
    use(plugin)
    commands.analyze.tsne(run, out, pixels, seed, benchmark=benchmark, teacher=teacher, limit=limit)


@analyze_app.command("training")
def analyze_training(
    measure: Annotated[str, Argument(help="What to follow; a wrong name lists what there is.")],
    run: Annotated[list[Path], Argument(metavar="RUN...", help="Run folders.")],
    out: CsvOut = None,
    domain: Domain = "validation",
    benchmark: Benchmark = None,
    limit: Limit = None,
    plugin: Plugins = None,
) -> None:
    """A number for each class over a training, from its log or the checkpoints it kept (runtime.keep_checkpoints)."""
    use(plugin)
    commands.analyze.training(measure, run, out, domain=domain, benchmark=benchmark, limit=limit)


def use(plugins: Sequence[str] | None) -> None:
    """Load the plugins of the command line."""
    if plugins:
        from udaseg.config.plugins import load_named

        load_named(plugins)


def refuse_typos(name: str, benchmark: str | None = None, overrides: Sequence[str] | None = None) -> None:
    """UserError for what is wrong with a recipe and shows in a second: torch is not imported."""
    from udaseg.config.layers import flatten
    from udaseg.config.schema import refuse_plain

    refuse_plain(*flatten(name, benchmark=benchmark, overrides=overrides or []))


def interruptible(work: Callable[[], object]) -> None:
    """Do the work; if a signal stopped it after it had saved itself, say how to go on."""
    from udaseg.engine.trainer import Interrupted

    try:
        work()
    except Interrupted as stop:
        fail(f"stopped by {stop}; everything is saved. The same command again continues.", 128 + stop.number)


if __name__ == "__main__":
    main()
