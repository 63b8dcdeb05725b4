"""EnCodec: bit for bit what transformers' own class gives, exact rates and lengths, and refusals that say why.

The models are tiny, with random weights; the real ones differ in width only.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the extra 'encodec' is not installed")

import huggingface_hub  # noqa: E402
import safetensors.torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: E402

from evalkit.audio import Clip  # noqa: E402
from evalkit.check import assert_conforms, synthetic  # noqa: E402
from evalkit.errors import ContractError, NotApplicable, Unavailable, UsageError  # noqa: E402
from evalkit.systems.encodec import Encodec  # noqa: E402
from evalkit.systems.load import load_system  # noqa: E402
from evalkit.tokens import Tokens  # noqa: E402
from evalkit.work import _run_batch, describe, run_system  # noqa: E402

HUB_ID = "facebook/encodec_24khz"
TINY = {"num_filters": 4, "hidden_size": 8, "num_lstm_layers": 1}
STEREO = {
    "sampling_rate": 48_000,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}
"""What sets the 48 kHz checkpoint's configuration apart from the default, which is the 24 kHz one's."""

STRIDE = 47_520
"""Samples from one segment of the 48 kHz model to the next: 0.99 s."""


def save_model(folder: Path, **config: Any) -> Path:
    from transformers import EncodecConfig, EncodecModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EncodecModel(EncodecConfig(**TINY, **config))
        # At random, a deep net gives little but its biases: without them, and louder, the audio decides.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "conv" in name:
                    weight.mul_(0.0 if name.endswith("bias") else 1.6)
        # Codebooks are all zeros until trained: spread them over what the encoder gives, or one code would win always.
        noise = 0.3 * torch.randn(1, model.config.audio_channels, 24_000)
        with torch.no_grad():
            spread, centre = torch.std_mean(model.encoder(noise)[0], dim=1)
        for i, layer in enumerate(model.quantizer.layers):
            embed = layer.codebook.embed
            embed.copy_(0.7**i * spread * torch.randn_like(embed) + centre * (i == 0))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mono_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def stereo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("stereo"), **STEREO)


def upstream(folder: Path) -> Any:
    from transformers import EncodecModel

    return EncodecModel.from_pretrained(folder).eval()


def clip(rate: int, samples: int, channels: int = 1, seed: int = 0) -> Clip:
    x = np.random.default_rng(seed).normal(0, 0.05, (channels, samples))
    return Clip(x + 0.5 * synthetic("music", rate, samples, seed), rate, f"clip-{samples}-{seed}")


def tensor(c: Clip) -> Any:
    return torch.from_numpy(c.samples)[None]


def frames_of(codes: Any, last_pad: int) -> np.ndarray:
    """Upstream's codes ``[segments, 1, K, frames]`` without their padding, segments side by side."""
    flat = torch.cat(list(codes[:, 0]), dim=-1)
    return flat[:, : flat.shape[1] - last_pad].numpy()


@pytest.mark.parametrize(("model", "channels"), [("mono_model", 1), ("stereo_model", 2)])
def test_the_tiny_models_are_no_constants(model: str, channels: int, request: pytest.FixtureRequest) -> None:
    """The audio decides the codes and these the audio: otherwise nothing below would show anything."""
    ours = Encodec(6, str(request.getfixturevalue(model)))
    first, second = (ours.encode(clip(ours.sample_rate, 30_011, channels, seed)) for seed in (0, 1))
    assert all(len(np.unique(row)) > 20 for row in first.codes)
    a, b = (ours.decode(tokens, 0).samples for tokens in (first, second))
    assert np.abs(a).max() > 0.05 and np.abs(a - b).max() > 0.05


# -- the same as upstream ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kbps", [1.5, 24.0])
@pytest.mark.parametrize("samples", [1, 319, 320, 4_001, 24_000, 30_011])
def test_24khz_codes_and_audio_are_upstreams_bit_for_bit(mono_model: Path, kbps: float, samples: int) -> None:
    c, ours, theirs = clip(24_000, samples), Encodec(kbps, str(mono_model)), upstream(mono_model)
    tokens = ours.encode(c)
    with torch.inference_mode():
        encoded = theirs.encode(tensor(c), bandwidth=kbps)
        decoded = theirs.decode(encoded.audio_codes, encoded.audio_scales).audio_values[0, :, :samples]
    assert np.array_equal(tokens.codes, encoded.audio_codes[0, 0].numpy())
    assert np.array_equal(ours.decode(tokens, 0).samples, decoded.numpy())
    assert not tokens.side and tokens.side_bits == tokens.container_bits == 0


@pytest.mark.parametrize("samples", [1, 319, 320, 24_113, STRIDE, STRIDE + 160, 48_000, 95_040, 96_000, 100_003])
def test_48khz_codes_scales_and_audio_are_upstreams_bit_for_bit(stereo_model: Path, samples: int) -> None:
    c, ours, theirs = clip(48_000, samples, 2), Encodec(6, str(stereo_model)), upstream(stereo_model)
    tokens = ours.encode(c)
    with torch.inference_mode():
        encoded = theirs.encode(tensor(c), bandwidth=6.0)
        pad = encoded.last_frame_pad_length
        decoded = theirs.decode(encoded.audio_codes, encoded.audio_scales, last_frame_pad_length=pad).audio_values
    assert np.array_equal(tokens.codes, frames_of(encoded.audio_codes, pad))
    assert tokens.side["scales"].tolist() == [float(s) for s in encoded.audio_scales]
    assert np.array_equal(ours.decode(tokens, 0).samples, decoded[0, :, :samples].numpy())


@pytest.mark.parametrize("samples", [STRIDE + 161, STRIDE + 320, 2 * STRIDE + 1, 2 * STRIDE + 160, 2 * STRIDE + 200])
def test_48khz_lengths_at_which_upstream_fails(stereo_model: Path, samples: int) -> None:
    """Segments are coded by themselves, so upstream gives each of them when it is handed that one alone."""
    c, ours, theirs = clip(48_000, samples, 2), Encodec(3, str(stereo_model)), upstream(stereo_model)
    with pytest.raises(RuntimeError), torch.inference_mode():
        theirs(tensor(c), bandwidth=3.0)
    tokens = ours.encode(c)
    made = ours.decode(tokens, 0)
    assert made.samples.shape == c.samples.shape
    at = 0
    for i, start in enumerate(range(0, samples, STRIDE)):
        with torch.inference_mode():
            alone = theirs.encode(tensor(c)[..., start : start + 48_000], bandwidth=3.0)
            decoded = theirs._decode_frame(alone.audio_codes[0], alone.audio_scales[0])[0].numpy()
        codes = alone.audio_codes[0, 0].numpy()
        assert np.array_equal(tokens.codes[:, at : at + codes.shape[1]], codes)
        assert tokens.side["scales"][i] == float(alone.audio_scales[0])
        at += codes.shape[1]
        here = slice(start + 480 * (i > 0), min(start + STRIDE, samples))  # what no other segment overlaps
        assert np.allclose(made.samples[:, here], decoded[:, here.start - start : here.stop - start], atol=1e-6)
    assert at == tokens.codes.shape[1]


def test_a_mono_clip_goes_into_both_channels_and_comes_back_as_their_mean(stereo_model: Path) -> None:
    ours, one = Encodec(6, str(stereo_model)), clip(48_000, 60_001)
    two = Clip(np.repeat(one.samples, 2, axis=0), 48_000)
    a, b = ours.encode(one), ours.encode(two)
    assert np.array_equal(a.codes, b.codes) and a.side_bits == b.side_bits and a.code_bits == b.code_bits
    back, both = ours.decode(a, 0).samples, ours.decode(b, 0).samples
    assert back.shape == (1, 60_001) and both.shape == (2, 60_001)
    assert not np.array_equal(both[0], both[1])
    assert np.allclose(back[0], both.mean(axis=0), atol=1e-7)


# -- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kbps", "codebooks"), [(1.5, 2), (3, 4), (6, 8), (12, 16), (24, 32)])
def test_24khz_rate_is_75_frames_of_10_bits_a_codebook(mono_model: Path, kbps: float, codebooks: int) -> None:
    tokens = Encodec(kbps, str(mono_model)).encode(clip(24_000, 48_000))
    assert tokens.codes.shape == (codebooks, 150) and tokens.sizes == (1024,) * codebooks
    assert tokens.frame_rate == 75 and tokens.nominal_kbps == kbps
    assert tokens.code_bits == kbps * 1000 * 2


@pytest.mark.parametrize(("kbps", "codebooks"), [(3, 2), (6, 4), (12, 8), (24, 16)])
@pytest.mark.parametrize("channels", [1, 2])
def test_48khz_rate_counts_overlap_and_scales(stereo_model: Path, kbps: float, codebooks: int, channels: int) -> None:
    """5 s: 5 whole segments of 150 frames and one of 2,400 samples, 8 frames of 320; a scale each, and 1 bit."""
    tokens = Encodec(kbps, str(stereo_model)).encode(clip(48_000, 240_000, channels))
    assert tokens.codes.shape == (codebooks, 5 * 150 + 8)
    assert tokens.code_bits == 758 * codebooks * 10
    assert tokens.side_bits == 6 * 32 + 1 and tokens.side["scales"].nbytes * 8 == 6 * 32
    assert tokens.frame_rate == 150 and tokens.nominal_kbps == kbps


# -- the contract -----------------------------------------------------------------------------------------------------


def test_conforms_at_24khz(mono_model: Path) -> None:
    assert_conforms(f"encodec:6@model={mono_model}", seconds=0.7)
    assert_conforms(Encodec(1.5, str(mono_model)), domain="speech", seconds=0.3)


def test_conforms_at_48khz(stereo_model: Path) -> None:
    assert_conforms(f"encodec:3@model={stereo_model}", domain="music", seconds=1.1)


def test_what_it_declares(mono_model: Path, stereo_model: Path) -> None:
    spec = f"encodec:6@model={mono_model}"
    said = describe(spec)
    assert said["name"] == spec and said["role"] == "codec" and said["domains"] is None
    assert said["sample_rate"] == 24_000 and not said["stochastic"]
    assert set(said["fingerprint"]["requires"]) == {"torch", "transformers"}
    assert "2210.13438" in said["citation"]
    assert (Encodec(6, str(mono_model)).channels, Encodec(6, str(stereo_model)).channels) == (1, None)
    trained = sum(p.numel() for p in upstream(mono_model).parameters())
    assert said["parameters"] == trained + 8 * 1024 * 8
    assert Encodec(24, str(mono_model)).parameters == trained + 32 * 1024 * 8


def test_more_channels_than_the_model_has_are_not_applicable(mono_model: Path, stereo_model: Path) -> None:
    with pytest.raises(NotApplicable, match="1 channel"):
        Encodec(6, str(mono_model)).encode(clip(24_000, 2_000, 2))
    with pytest.raises(NotApplicable, match="2 channel"):
        Encodec(6, str(stereo_model)).encode(clip(48_000, 2_000, 3))


@pytest.mark.parametrize("model", ["mono_model", "stereo_model"])
def test_clips_handed_over_together_give_what_each_gives_alone(model: str, request: pytest.FixtureRequest) -> None:
    loaded = load_system(f"encodec:6@model={request.getfixturevalue(model)}")
    rate = loaded.system.sample_rate
    clips = [clip(rate, n, seed=i) for i, n in enumerate((9_001, 9_001, 30_011, 9_001))]
    together = _run_batch(loaded, clips, [0] * 4)
    for c, output in zip(clips, together, strict=True):
        alone = run_system(loaded.system, c, 0)
        assert not isinstance(output, Exception)
        assert output.tokens is not None and alone.tokens is not None
        assert np.array_equal(output.tokens.codes, alone.tokens.codes)
        assert np.array_equal(output.clip.samples, alone.clip.samples)


def test_too_few_codes_are_noticed(mono_model: Path) -> None:
    ours = Encodec(6, str(mono_model))
    tokens = ours.encode(clip(24_000, 3_200))
    with pytest.raises(ContractError, match="2880 samples, 3200"):
        ours.decode(Tokens(tokens.codes[:, :-1], tokens.sizes, 75, 3_200, 24_000), 0)


def test_torch_is_left_as_it_was(mono_model: Path) -> None:
    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().numpy().tobytes(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    ours = Encodec(6, str(mono_model))
    ours.decode(ours.encode(clip(24_000, 4_001)), 0)
    assert state() == before


def test_importing_it_and_listing_it_is_light() -> None:
    code = (
        "import sys; from evalkit import registry; assert 'encodec' in registry.names('systems'); "
        "assert 'evalkit.systems.encodec' in sys.modules; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# -- where the weights come from --------------------------------------------------------------------------------------


def tensors_of(folder: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def with_tensors(source: Path, folder: Path, tensors: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_other_forms_of_the_same_weights_are_the_same_system(mono_model: Path, tmp_path: Path) -> None:
    """Pickled; under the names that older torch gave weight norm; without what only training reads."""
    tensors = tensors_of(mono_model)
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in tensors.items()
        if not k.endswith((".inited", ".cluster_size", ".embed_avg"))
    }
    assert set(old) != set(tensors)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(mono_model / "config.json", pickled)
    torch.save(old, pickled / "pytorch_model.bin")
    ours, c = Encodec(6, str(mono_model)), clip(24_000, 4_001)
    expected = ours.decode(ours.encode(c), 0)
    for folder in (pickled, with_tensors(mono_model, tmp_path / "old", old)):
        other = Encodec(6, str(folder))
        assert other.fingerprint() == ours.fingerprint()
        assert np.array_equal(other.decode(other.encode(c), 0).samples, expected.samples)


def test_weights_in_half_precision_are_computed_with_in_float32(mono_model: Path, tmp_path: Path) -> None:
    half = {k: v.half() for k, v in tensors_of(mono_model).items()}
    single = {k: v.float() for k, v in half.items()}
    a = Encodec(6, str(with_tensors(mono_model, tmp_path / "half", half)))
    b = Encodec(6, str(with_tensors(mono_model, tmp_path / "single", single)))
    tokens = a.encode(clip(24_000, 4_001))
    assert np.array_equal(a.decode(tokens, 0).samples, b.decode(tokens, 0).samples)
    assert a.fingerprint() == b.fingerprint()


def test_the_fingerprint_sees_weights_and_configuration(mono_model: Path, tmp_path: Path) -> None:
    first = Encodec(6, str(mono_model)).fingerprint()
    tensors = tensors_of(mono_model)
    name = "decoder.layers.0.conv.bias"
    changed = with_tensors(mono_model, tmp_path / "changed", {**tensors, name: tensors[name] + 1e-6})
    assert Encodec(6, str(changed)).fingerprint() != first
    reconfigured = with_tensors(mono_model, tmp_path / "reconfigured", tensors)
    edit_config(reconfigured, pad_mode="constant")
    assert Encodec(6, str(reconfigured)).fingerprint() != first


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def test_rates_the_model_was_not_trained_for_are_refused(mono_model: Path, stereo_model: Path) -> None:
    with pytest.raises(UsageError, match=r"encodec:5: .* 1\.5, 3, 6, 12, 24 kbps"):
        load_system(f"encodec:5@model={mono_model}")
    with pytest.raises(UsageError, match="for 3, 6, 12, 24 kbps"):
        load_system(f"encodec:1.5@model={stereo_model}")


def test_a_folder_that_is_absent_or_lacks_files(mono_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no folder .*/absent; run `hf download .*files:DIR@kbps"):
        load_system(f"encodec:6@model={tmp_path}/absent")
    with pytest.raises(Unavailable, match=r"has no config\.json"):
        load_system(f"encodec:6@model={tmp_path}")
    shutil.copy(mono_model / "config.json", tmp_path)
    with pytest.raises(Unavailable, match=r"has no model\.safetensors or pytorch_model\.bin"):
        load_system(f"encodec:6@model={tmp_path}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mimi"}, "of type 'mimi', not 'encodec'"),
        ({"norm_type": "none"}, r"config\.json: "),
        ({"codebook_size": 1000}, "power of 2"),
        ({"audio_channels": 5}, "audio_channels must be 1 or 2"),
        ({"chunk_length_s": 1.0}, "needs overlap"),
        ({"num_filters": 8}, "does not fit its config.json: size mismatch"),
        ({"num_residual_layers": 2}, "does not fit|lacks"),
    ],
)
def test_a_configuration_that_is_not_these_weights(
    mono_model: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = copied(mono_model, tmp_path / "model")
    edit_config(folder, **values)
    with pytest.raises(UsageError, match=message):
        load_system(f"encodec:6@model={folder}")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_a_configuration_that_is_none(mono_model: Path, tmp_path: Path, text: str) -> None:
    folder = copied(mono_model, tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json is not a model's configuration"):
        load_system(f"encodec:6@model={folder}")


def test_truncated_weights_are_refused(mono_model: Path, tmp_path: Path) -> None:
    folder = copied(mono_model, tmp_path / "model")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"model\.safetensors cannot be read as weights, truncated perhaps"):
            load_system(f"encodec:6@model={folder}")
    path.rename(folder / "pytorch_model.bin")  # not a pickle either
    with pytest.raises(UsageError, match=r"pytorch_model\.bin cannot be read as weights"):
        load_system(f"encodec:6@model={folder}")


def test_a_pickle_that_would_run_code_is_refused(mono_model: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    shutil.copy(mono_model / "config.json", tmp_path)
    torch.save({"decoder.layers.0.conv.bias": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be read as weights"):
        load_system(f"encodec:6@model={tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["decoder.layers.1.lstm.weight_hh_l0", "quantizer.layers.31.codebook.embed"])
def test_missing_tensors_are_refused_not_drawn_at_random(mono_model: Path, tmp_path: Path, name: str) -> None:
    tensors = tensors_of(mono_model)
    del tensors[name]
    folder = with_tensors(mono_model, tmp_path / "model", tensors)
    upstream(folder)  # which goes on
    with pytest.raises(UsageError, match=f"lacks 1 tensors .* {name}"):
        load_system(f"encodec:6@model={folder}")


def test_without_the_extra(mono_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Unavailable, match=r"evalkit-audio\[encodec\]"):
        load_system(f"encodec:6@model={mono_model}")


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network: whoever looks up a name is told that there is none."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return cache


class Network:
    """Stands for `socket.getaddrinfo` where nothing can be looked up."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


def fill(cache: Path, source: Path) -> Path:
    """A snapshot as the hub's client lays it out."""
    repository, commit = cache / f"models--{HUB_ID.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    return Path(shutil.copytree(source, repository / "snapshots" / commit))


def test_no_network_is_said_at_once(hub_cache: Path, network: Network) -> None:
    with pytest.raises(Unavailable) as caught:
        load_system("encodec:6")
    message = str(caught.value)
    assert message.startswith(f"encodec: {HUB_ID} is neither a folder here nor in the hub's cache")
    assert "no network in this test" in message
    assert f"hf download {HUB_ID} --local-dir FOLDER" in message and "files:DIR@kbps=KBPS" in message
    assert "\n" not in message and len(message) < 450
    assert network.asked <= 2, "kept asking"  # the client tries a refused connection twice


def test_offline_mode_is_respected(hub_cache: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="OfflineModeIsEnabled"):
        load_system("encodec:6")
    assert network.asked == 0


def test_the_cache_is_taken_without_asking(hub_cache: Path, network: Network, mono_model: Path) -> None:
    snapshot = fill(hub_cache, mono_model)
    loaded = load_system("encodec:6")
    assert loaded.name == f"encodec:6@model={HUB_ID}"
    assert loaded.system.fingerprint() == Encodec(6, str(mono_model)).fingerprint()
    assert network.asked == 0
    (snapshot / "model.safetensors").unlink()  # half a cache is none
    with pytest.raises(Unavailable, match="nor in the hub's cache"):
        load_system("encodec:6")
    assert 1 <= network.asked <= 2


@pytest.mark.parametrize("kept", ["pytorch_model.bin", "model.safetensors", None])
def test_what_the_hub_has_is_fetched(
    hub_cache: Path, mono_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str | None
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    shutil.copy(mono_model / "config.json", remote)
    if kept == "model.safetensors":
        shutil.copy(mono_model / kept, remote)
    elif kept:
        torch.save(tensors_of(mono_model), remote / kept)

    def download(repository: str, name: str, **_: Any) -> str:
        assert repository == HUB_ID
        if not (remote / name).exists():
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(remote / name)

    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    if kept:
        assert load_system("encodec:6").system.fingerprint() == Encodec(6, str(mono_model)).fingerprint()
    else:
        with pytest.raises(Unavailable, match=r"repository has no model\.safetensors or pytorch_model\.bin"):
            load_system("encodec:6")
    assert len(asked) == 1 and f"{HUB_ID}/resolve/main/config.json" in asked[0]
