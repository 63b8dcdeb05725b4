"""The import shim for torchaudio: real torchaudio, in a folder of its own, beside this environment's torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import evalkit.torchaudio_shim as shim
from evalkit.errors import NotApplicable


@pytest.fixture(scope="session")
def torchaudio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchaudio 2.11, unpacked into a folder; this environment is left as it is."""
    import torch

    if torch.version.cuda is not None:
        pytest.skip("the shim is for CPU builds of torch, and this is a CUDA build")
    folder = tmp_path_factory.mktemp("torchaudio")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--target", str(folder), f"torchaudio=={shim.RELEASE}.*"], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        pytest.skip(f"pip cannot get torchaudio {shim.RELEASE} here: {(done.stderr.splitlines() or ['?'])[-1][:200]}")
    return folder


def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    repo = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(map(str, (*folders, repo)))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def printed(code: str, *folders: Path) -> list[str]:
    done = run(code, *folders)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def test_absent_torchaudio_is_not_applicable_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # as the import system marks what is not there
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[torchaudio\]' \(torchaudio==2\.11\.\*\)"):
        shim.import_torchaudio()


def test_install_is_done_once_and_imports_neither_torch_nor_torchaudio() -> None:
    code = (
        "import sys, evalkit.torchaudio_shim as s; s.install(); s.install(); "
        "print(sum(type(f).__name__ == '_Finder' for f in sys.meta_path), 'torch' in sys.modules)"
    )
    assert printed(code) == ["1 False"]


def fake(folder: Path, version: str, cause: str) -> Path:
    """A package that looks like torchaudio to the hook, and fails while its extension is imported."""
    package = folder / "torchaudio"
    for name, text in {
        "__init__.py": "from . import _extension",
        "_extension/__init__.py": cause,
        "_internal/__init__.py": "",
        "_internal/module_utils.py": "def fail_with_message(m):\n    return lambda f: f",
        f"../torchaudio-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torchaudio\nVersion: {version}\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text + "\n")
    return folder


STATE = (
    "import evalkit.torchaudio_shim as s\n"
    "try: t = s.import_torchaudio(); print('imported', t._extension._IS_TORCHAUDIO_EXT_AVAILABLE)\n"
    "except Exception as e: print(type(e).__name__, e)"
)


@pytest.mark.parametrize(
    ("version", "cause", "cuda", "expected"),
    [
        ("2.11.0", "raise OSError('libc10_cuda.so: no such file')", None, "imported False"),
        ("2.11.0", "_IS_TORCHAUDIO_EXT_AVAILABLE = True", None, "imported True"),
        ("2.11.0", "raise OSError('broken')", "13.0", "NotApplicable torchaudio 2.11.0 cannot be imported"),
        ("2.12.0", "raise OSError('broken')", None, "NotApplicable torchaudio 2.12.0 cannot be imported"),
        ("2.11.0", "raise ImportError('other')", None, "NotApplicable torchaudio 2.11.0 cannot be imported"),
    ],
    ids=["cpu-broken", "works", "cuda-broken", "other-release", "other-error"],
)
def test_the_state_is_given_only_where_it_is_needed(
    tmp_path: Path, version: str, cause: str, cuda: str | None, expected: str
) -> None:
    """A stand-in for torch as well, so that both builds can be tried."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from . import version")
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {cuda!r}\nhip = None")
    (line,) = printed(STATE, fake(tmp_path, version, cause))
    assert line.startswith(expected)
    assert line.startswith("imported") or "pip install 'evalkit-audio[torchaudio]'" in line


def test_without_the_shim_the_import_fails_and_with_it_it_works(torchaudio_folder: Path) -> None:
    done = run("import torchaudio", torchaudio_folder)
    assert done.returncode and "Could not load this library" in done.stderr, done.stderr[-500:]
    code = """
import torch
from evalkit.torchaudio_shim import import_torchaudio
t = import_torchaudio()
print(t.__version__.split("+")[0].rpartition(".")[0], t._extension._IS_TORCHAUDIO_EXT_AVAILABLE)
x = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
mel = t.transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=40)(x)
bank = t.functional.melscale_fbanks(257, 0.0, 8000.0, 40, 16000)
power = torch.stft(x, 512, 160, window=torch.hann_window(512), return_complex=True).abs() ** 2
print(list(mel.shape), torch.allclose(mel, (power.transpose(1, 2) @ bank).transpose(1, 2), rtol=1e-3, atol=1e-4))
tone = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
half = t.transforms.Resample(16000, 8000)(tone)
want = torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 8000)
print(len(half), (half - want)[200:-200].abs().max().item() < 1e-2)
try:
    t.functional.forced_align(torch.zeros(1, 10, 5).log_softmax(-1), torch.tensor([[1, 2]]))
except RuntimeError as e:
    print("cannot be loaded beside a CPU build" in str(e))
"""
    assert printed(code, torchaudio_folder) == ["2.11 False", "[1, 40, 101] True", "8000 True", "True"]


def test_squim_and_wav2vec2_models_run(torchaudio_folder: Path) -> None:
    code = """
import torch
from evalkit.torchaudio_shim import import_torchaudio
t = import_torchaudio()
torch.manual_seed(0)
x = torch.randn(2, 16000)
with torch.inference_mode():
    stoi, pesq, sdr = t.models.squim_objective_base().eval()(x)
    print(list(stoi.shape), bool(((0 <= stoi) & (stoi <= 1)).all()), bool(((1 <= pesq) & (pesq <= 5)).all()),
          bool(torch.isfinite(sdr).all()))
    net = t.models.wav2vec2_model(
        extractor_mode="group_norm", extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2), (16, 3, 2)],
        extractor_conv_bias=False, encoder_embed_dim=16, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=2, encoder_num_layers=2, encoder_num_heads=2, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=32, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
        encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=29).eval()
    logits, _ = net(x)
    print(list(logits.shape), bool(torch.isfinite(logits).all()))
"""
    assert printed(code, torchaudio_folder) == ["[2] True True True", "[2, 799, 29] True"]


@pytest.mark.slow
def test_transformers_imports_with_the_shim_installed_first_and_not_without(torchaudio_folder: Path) -> None:
    """Without it is the reason for the shim: should that part fail one day, it is not needed any more."""
    pytest.importorskip("transformers")
    first = "from evalkit.torchaudio_shim import install; install()\n"
    code = "from transformers import LlamaForCausalLM, EncodecModel, AutoProcessor, HubertModel; print('ok')"
    assert printed(first + code, torchaudio_folder) == ["ok"]
    done = run("from transformers import LlamaForCausalLM", torchaudio_folder)
    assert done.returncode and "torchaudio" in done.stderr
