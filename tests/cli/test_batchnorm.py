"""BatchNorm statistics of the target by command: `evaluation.bn=recompute` and `evaluate --recompute-bn`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from cli.test_commands import Answer, Run, is_message, udaseg
from safetensors.torch import load_file
from torch import nn

from udaseg.config.schema import DataSection
from udaseg.engine.batchnorm import IMAGES, evenly
from udaseg.engine.networks import segmentor
from udaseg.errors import UserError
from udaseg.evaluation.evaluate import recompute_batchnorm
from udaseg.models import weights_file

__all__ = ["udaseg"]
TARGET = 12  # training images of the small `streets`
STEPS = ("train.iterations=4", "evaluation.every=2", "runtime.log_every=2")


def train(*more: str, recipe: str = "dacs", base: tuple[str, ...] = toy.TINY) -> list[str]:
    return ["train", "--recipe", recipe, "--benchmark", "streets", "--out", "run", *base, *STEPS, *more]


@pytest.fixture(scope="module")
def recomputed(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both numbers."""
    folder = tmp_path_factory.mktemp("recomputed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDASEG_DATA", str(streets_home))
        patch.chdir(folder.parent)
        assert toy.run(*train("evaluation.bn=recompute")) == 0
    return folder


def confusion(answer: Answer) -> list[list[int]]:
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found["confusion"]  # type: ignore[no-any-return]


def test_the_result_has_two_numbers_and_a_file_for_each(udaseg: Run, streets: Path, recomputed: Path) -> None:
    result = json.loads((recomputed / "result.json").read_text())
    assert result["recomputed_bn"]["images"] == TARGET and result["recomputed_bn"]["iteration"] == 4
    assert result["recomputed_bn"]["confusion"] != result["validation"]["confusion"]
    for name, key in (("weights", "validation"), ("weights_bn", "recomputed_bn")):
        measured = confusion(udaseg("evaluate", str(recomputed / f"{name}.safetensors"), "--json"))
        assert measured == result[key]["confusion"]
    assert confusion(udaseg("evaluate", str(recomputed), "--recompute-bn", "--json")) == measured


def test_the_files_differ_in_statistics_only_and_say_so(recomputed: Path) -> None:
    plain, other = (load_file(recomputed / f"weights{name}.safetensors") for name in ("", "_bn"))
    assert plain.keys() == other.keys()
    changed = {key.rpartition(".")[2] for key in plain if not torch.equal(plain[key], other[key])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert weights_file.read_metadata(recomputed / "weights.safetensors").origin is None
    origin = weights_file.read_metadata(recomputed / "weights_bn.safetensors").origin
    assert origin == {"network": f"student + BatchNorm recomputed on {TARGET} target images"}


def test_train_evaluate_and_report_name_both(udaseg: Run, streets: Path, recomputed: Path) -> None:
    os.symlink(recomputed, "run")
    lines = udaseg(*train("evaluation.bn=recompute")).out.splitlines()
    assert "finished before" in lines[0] and "student at the last iteration, iteration 4" in lines[1]
    assert "the same with BatchNorm statistics recomputed on the target (weights_bn.safetensors)" in lines[2]
    text = " ".join(udaseg("evaluate", "run", "--recompute-bn", "--bn-images", "5").out.split())
    assert "student + BatchNorm recomputed on 5 target images of dacs on streets_target val" in text
    text = udaseg("report", "--runs", str(recomputed.parent)).out
    assert "mIoU, BN of target" in text and "recomputed on the target" in text


def test_predictions_of_either_have_a_folder_of_their_own(udaseg: Run, streets: Path, recomputed: Path) -> None:
    os.symlink(recomputed, "run")
    image = next((Path(os.environ["UDASEG_DATA"]) / "streets").rglob("*.png"))
    for name in ("weights", "weights_bn"):
        assert udaseg("predict", f"run/{name}.safetensors", str(image)).code == 0
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["run", "run-bn"]


def test_without_it_there_is_one_number(udaseg: Run, streets: Path) -> None:
    answer = udaseg(*train(recipe="source_only"))
    assert answer.code == 0 and "recomputed" not in answer.out
    assert json.loads(Path("run/result.json").read_text())["recomputed_bn"] is None
    assert not Path("run/weights_bn.safetensors").exists()
    assert "BN of target" not in udaseg("report", "--runs", ".").out


def test_source_only_reads_the_target_for_it(udaseg: Run, streets: Path) -> None:
    assert udaseg(*train("evaluation.bn=recompute", recipe="source_only")).code == 0
    assert json.loads(Path("run/result.json").read_text())["recomputed_bn"]["images"] == TARGET
    Path("run").rename("other")
    missing = train("evaluation.bn=recompute", "data.target.root=nowhere", recipe="source_only")
    is_message(udaseg(*missing), "data.target", "nowhere")


NO_BATCHNORM = (*toy.SMALL, "model.encoder=mit_b0", "model.decoder=linear")


def test_a_network_without_batchnorm_is_refused(udaseg: Run, streets: Path) -> None:
    answer = udaseg(*train("evaluation.bn=recompute", recipe="source_only", base=NO_BATCHNORM))
    is_message(answer, "evaluation.bn: BatchNorm statistics cannot be recomputed: the network has no BatchNorm")
    assert not Path("run/recipe.yaml").exists()
    assert udaseg(*train(recipe="source_only", base=NO_BATCHNORM)).code == 0
    is_message(udaseg("evaluate", "run", "--recompute-bn"), "the network has no BatchNorm")


def test_without_a_target_it_is_refused(udaseg: Run, streets: Path) -> None:
    base = tuple(text for text in toy.TINY if not text.startswith("data.target"))
    answer = udaseg(*train("evaluation.bn=recompute", "data.target=null", recipe="source_only", base=base))
    is_message(answer, "evaluation.bn: needs a target domain")


def test_a_norm_that_sees_one_value_of_an_image_is_refused(udaseg: Run, streets: Path) -> None:
    model = ("model.decoder={kind: deeplabv3plus, width: 16, norm: true}",)
    is_message(udaseg(*train("evaluation.bn=recompute", *model)), "evaluation.bn", "image by image")


def test_images_are_drawn_evenly() -> None:
    assert evenly(400, IMAGES)[:3] == [0, 6, 12] and len(set(evenly(400, IMAGES))) == IMAGES
    assert evenly(12, 64) == list(range(12)) and evenly(12, 5) == [0, 2, 4, 7, 9] and evenly(0, 5) == []


def test_the_statistics_are_the_means_over_the_images() -> None:
    """Against numbers computed by hand, of a network that is one BatchNorm."""

    class One(nn.BatchNorm2d):
        def logits(self, image: torch.Tensor) -> torch.Tensor:
            return self(image)

    one, images = One(3), [torch.randn(1, 3, 4, 5) for _ in range(3)]
    recompute_batchnorm(one, images)  # type: ignore[arg-type]
    assert torch.allclose(one.running_mean, torch.stack([x.mean((0, 2, 3)) for x in images]).mean(0), atol=1e-6)
    assert torch.allclose(one.running_var, torch.stack([x.var((0, 2, 3)) for x in images]).mean(0), atol=1e-6)
    assert one.momentum == 0.1 and not one.training
    with pytest.raises(UserError, match="no BatchNorm"):
        recompute_batchnorm(nn.Conv2d(3, 3, 1), images)  # type: ignore[arg-type]


def test_with_hrda_nothing_depends_on_a_random_detail() -> None:
    """The images pass as in evaluation: all details, none drawn."""
    image, statistics = torch.randn(1, 3, 128, 128), []
    for seed in range(2):
        torch.manual_seed(0)
        network = segmentor({"kind": "tiny"}, {"kind": "fpn"}, 5, wrapper={"kind": "hrda"}, crop=(128, 128))
        torch.manual_seed(seed)
        recompute_batchnorm(network, [image])
        statistics.append([t for name, t in network.state_dict().items() if "running" in name])
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))


def test_sections_of_a_weights_file_hold_the_target(recomputed: Path) -> None:
    """So that a weights file alone, without its run, is enough for `--recompute-bn`."""
    data = weights_file.read_metadata(recomputed / "weights.safetensors").data
    target = DataSection.model_validate({**data, "crop": (1, 1)}).target
    assert target is not None and target.dataset == "streets_target"


@pytest.mark.slow
def test_two_processes_share_the_second_evaluation_too(streets: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    arguments = [*launcher, "-m", "udaseg.cli", *train("evaluation.bn=recompute")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(Path("run/result.json").read_text())
    first, second = (sum(map(sum, result[key]["confusion"])) for key in ("validation", "recomputed_bn"))
    assert first == second > 0
    again = [sys.executable, "-m", "udaseg.cli", "evaluate", "run/weights_bn.safetensors", "--json"]
    measured = json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout)
    assert measured["confusion"] == result["recomputed_bn"]["confusion"]
