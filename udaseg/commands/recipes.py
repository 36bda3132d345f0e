"""`udaseg recipe`: list, show, copy, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from udaseg.config.layers import leaves, locate, shipped
from udaseg.console import out, table
from udaseg.errors import UserError
from udaseg.problems import set_by

if TYPE_CHECKING:
    from udaseg.config.load import Loaded


def listing() -> None:
    """All shipped recipes and benchmarks with the first sentence of their header."""
    for title, folder in (("recipes", ""), ("benchmarks", "benchmarks")):
        rows = [[name, first_sentence(path)] for name, path in shipped(folder).items()]
        table((title, "what it is"), rows, left=2)
        out.print()


def first_sentence(path: Path) -> str:
    """Of the comment a recipe opens with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:])
    sentence = " ".join(lines).split(". ")[0]
    return sentence.rstrip(".")


def show(loaded: Loaded) -> None:
    """Flattened, each value with the file it came from; then what a step costs in passes."""
    written = dict(leaves(loaded.tree))
    rows = []
    for path, value in leaves(loaded.recipe.as_written()):
        origin = set_by(path, loaded.origin) if path in written else "default"
        rows.append([".".join(path), str(value), origin])
    table(("key", "value", "from"), rows, left=3)
    out.print(f"\npasses per step: {passes(loaded)}")
    for plugin in plugins(loaded):
        out.print(f"plugin: {plugin}")
    out.print(f"fingerprint: {loaded.recipe.fingerprint()[:12]}")


def plugins(loaded: Loaded) -> list[str]:
    """Where the components that are not of this package come from."""
    from udaseg.config import checks

    return [
        f"{plugin.name}{f' {plugin.version}' if plugin.version else ''} (sha256 {plugin.sha256[:12]})"
        for plugin in checks.plugins(loaded.recipe)
    ]


def passes(loaded: Loaded) -> str:
    """Network passes of one step, read off the recipe: one of the student a view, at most one of the teacher.

    Components whose settings ask for a further one say so.
    """
    from udaseg.config.checks import components, needs  # with torch, which listing and copying do without
    from udaseg.config.registry import needs_of

    recipe, total = loaded.recipe, needs(loaded.recipe)
    parts = [f"student {len(recipe.views)} ({' + '.join(recipe.views)})", f"teacher {int(total.target)}"]
    if total.pretrained_encoder:
        parts.append("pretrained encoder 1")
    for path, kind, part in components(recipe):
        for network, number in needs_of(kind, part).passes.items():
            parts.append(f"{network} {number} more for {path[1]}/{path[-1]}")
    return ", ".join(parts)


def copy(name: str, target: Path) -> None:
    """Copy a shipped recipe to a new file."""
    source = locate(name)
    target = target / source.name if target.is_dir() else target
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"{target}: a recipe's file ends in .yaml")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        raise UserError(f"{target} exists; choose another name") from None
    out.print(f"{target}: a copy of {name}. Train it: udaseg train --recipe {target}")


def validate(loaded: Loaded) -> None:
    out.print(f"{loaded.recipe.name}: valid, fingerprint {loaded.recipe.fingerprint()[:12]}")


def assumptions() -> None:
    """The page of assumptions, as Markdown."""
    from udaseg.config.assumptions import assumptions_markdown

    print(assumptions_markdown(), end="")
