"""The comparison of the decoders: its figures against closed forms and scipy, its verdicts, and the whole command."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from tokenizer import compare
from tokenizer.codec import SoundTokenizer


@pytest.mark.parametrize("size", [2, 16, 100])
def test_the_frechet_distance_equals_the_matrix_square_root_route(size: int) -> None:
    rng = np.random.default_rng(size)
    a = rng.normal(size=(4 * size, size)) @ rng.normal(size=(size, size))
    b = rng.normal(size=(3 * size, size)) @ rng.normal(size=(size, size)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root.real)
    assert compare.frechet(a, b) == pytest.approx(wanted, rel=1e-6)
    assert compare.frechet(a, a) == pytest.approx(0, abs=1e-6 * np.trace(ca))


def test_the_frechet_distance_of_scaled_normals_has_a_closed_form() -> None:
    x = np.random.default_rng(0).normal(size=(500, 3))
    spread = np.trace(np.cov(x.T))
    assert compare.frechet(x, 2 * x) == pytest.approx((x.mean(0) ** 2).sum() + spread, rel=1e-9)  # (2 - 1)^2 of each


@pytest.mark.parametrize(
    ("fm", "mse", "verdict"),
    [(0.9, 0.5, "FM"), (0.5, 0.9, "MSE"), (1.4, 0.5, "FM"), (0.9, 1.1, "open")],
)
def test_a_verdict_is_of_the_distance_from_the_perfect_value(fm: float, mse: float, verdict: str) -> None:
    """gv_ratio is best at 1: 1.4 is nearer than 0.5, and 0.9 and 1.1 are equally near."""
    rng = np.random.default_rng(1)
    a, b = (v + 0.02 * rng.normal(size=(3, 3, 40)) for v in (fm, mse))
    found = compare._difference(a, b, [str(i) for i in range(40)], "gv_ratio")
    assert found["verdict"] == verdict
    assert found["mean"] == pytest.approx(abs(fm - 1) - abs(mse - 1), abs=0.02)


def test_one_training_seed_against_the_others_leaves_it_open() -> None:
    """Clips agree perfectly, training seeds do not: no verdict from clips alone."""
    a = np.zeros((3, 1, 40)) + np.array([0.1, 0.5, 1.6])[:, None, None]
    found = compare._difference(a, np.ones((3, 1, 40)), [str(i) for i in range(40)], "mel_mse")
    assert found["interval_over_clips"][1] < 0
    low, high = found["interval_over_training_seeds"]
    assert low < 0 < high and found["verdict"] == "open"
    d = np.array([-0.9, -0.5, 0.6])
    assert high - low == pytest.approx(2 * 4.302653 * d.std(ddof=1) / math.sqrt(3), rel=1e-5)  # t_{2, 0.975}


@pytest.fixture(scope="module")
def folders(tiny: Callable[..., SoundTokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two training seeds of each decoder on the same codes."""
    root = tmp_path_factory.mktemp("compare")
    base = tiny()
    out: dict[str, list[str]] = {"fm": [], "mse": []}
    for objective, paths in out.items():
        for seed in range(2):
            model = copy.deepcopy(tiny(objective=objective))
            model.vae.load_state_dict(base.vae.state_dict())
            assert model.quantizer is not None and base.quantizer is not None and model.decoder is not None
            model.quantizer.load_state_dict(base.quantizer.state_dict())
            torch.manual_seed(seed)
            torch.nn.init.normal_(model.decoder.leave.weight, std=0.05)
            card = {"data": {"trained_on": {"scenes": {"test-0000": ["test-0000"]}}}}
            paths.append(str(root / f"{objective}{seed}"))
            model.save_pretrained(paths[-1], card)
    return {k: ",".join(v) for k, v in out.items()}


def test_the_command_writes_everything(folders: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--fm", folders["fm"], "--mse", folders["mse"], "--data", "scenes@clips=4", "-o", str(tmp_path)]
    compare.main([*arguments, "--noise-seeds", "2"])
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["clips"] == 3  # test-0000 was trained on
    assert "NaN" not in (tmp_path / "comparison.json").read_text()
    assert set(found["measures"]) == set(compare.MEASURES)
    first = found["measures"]["latent_mse"]
    assert len(first["fm"]["by_training_seed"]) == 2 and first["mse"]["sd_over_noise_seeds"] is None
    assert [r["n"] for r in found["mean_of_n"]] == list(compare.MEANS_OF)
    ones = [r for r in found["guidance"] if r["guidance"] == 1.0]
    same = [
        r for r in found["evaluations"] if (r["solver"], r["evaluations"]) == ("midpoint", 4)
    ]  # the default of `tiny`
    assert ones[0]["mel_mse"] == same[0]["mel_mse"]
    page = (tmp_path / "comparison.md").read_text()
    assert page.count("## ") == 5 and "| latent_mse" in page
    assert (tmp_path / "curves.png").stat().st_size > 1000 and (tmp_path / "mels.png").stat().st_size > 1000


def test_the_mean_of_many_samples_has_less_variance(folders: dict[str, str]) -> None:
    model = SoundTokenizer.from_pretrained(folders["fm"].split(",")[0])
    twin = SoundTokenizer.from_pretrained(folders["mse"].split(",")[0])
    clips = compare.held_out(model, ["scenes@clips=4"], None)
    rows = compare.mean_of_samples(model, twin, clips)
    errors = [r["latent_mse"] for r in rows]
    assert errors == sorted(errors, reverse=True)  # independent noise averages out


def test_models_on_other_codes_are_refused(
    tiny: Callable[..., SoundTokenizer], folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(tiny(objective="mse"))
    torch.manual_seed(5)
    torch.nn.init.normal_(other.vae.project.weight)
    other.save_pretrained(tmp_path / "other")
    fm = folders["fm"].split(",")[0]
    with pytest.raises(SystemExit):
        compare.main(["--fm", fm, "--mse", str(tmp_path / "other"), "--data", "scenes@clips=2", "-o", str(tmp_path)])
    assert "do not share their vae" in capsys.readouterr().err
