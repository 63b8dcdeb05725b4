"""Reconstruction: encode a clip, decode it, and measure what came back, what it cost in bits and in time."""

from __future__ import annotations

from evalkit import Prepare, Task, task
from evalkit.metrics.cost import COST
from evalkit.metrics.distribution import DISTRIBUTION
from evalkit.metrics.dnsmos import DNSMOS
from evalkit.metrics.rate import CODES, RATE
from evalkit.metrics.spectral import SPECTRAL
from evalkit.metrics.speech import SPEECH
from evalkit.metrics.texture import TEXTURE
from evalkit.metrics.waveform import ALIGNED, WAVEFORM
from evalkit.metrics.words import WORDS

METRICS = (
    *SPECTRAL,
    *TEXTURE,
    *DISTRIBUTION,
    *SPEECH,
    *DNSMOS,
    *WORDS,
    *WAVEFORM,
    *ALIGNED,
    *RATE,
    *CODES,
    *COST,
)
HEADLINE = (SPECTRAL[0], "modulation_distance", "gv_ratio", "fad@mel-stats", "mse_db")
SPEECH_HEADLINE = (SPECTRAL[0], "pesq_wb", "stoi", "dnsmos_ovr", "wer@pocketsphinx", "fad@mel-stats")


def reconstruction(dataset: str, prepare: Prepare, summary: str, headline: tuple[str, ...] = HEADLINE) -> Task:
    """The reconstruction task of a data set. Measures of speech are n/a where the data set is not speech."""
    name = dataset.partition("@")[0].partition(":")[0]
    return Task(f"{name}-reconstruction", dataset, METRICS, prepare, summary=summary, headline=headline)


@task
def reconstruction_tasks() -> list[Task]:
    """One task a data set. Rates and lengths: fixed where the data set has one, each clip's own elsewhere."""
    read = Prepare(sample_rate=16_000)
    return [
        reconstruction("scenes", Prepare(sample_rate=24_000), "generated sound scenes"),
        # ESC-50 clips are 5 s by definition, but the Ogg originals of ESC-10 are up to 2.3 s off.
        reconstruction("esc50", Prepare(sample_rate=44_100, seconds=5.0), "environmental sounds"),
        reconstruction("vctk", Prepare(), "read English speech, 110 speakers", SPEECH_HEADLINE),
        reconstruction("librispeech", read, "read English speech from audio books", SPEECH_HEADLINE),
        reconstruction("fma", Prepare(sample_rate=44_100), "music tracks in 10 s excerpts"),
        reconstruction("fsdd", Prepare(sample_rate=8_000), "spoken digits at 8 kHz"),
        reconstruction("folder", Prepare(), "any folder of audio files: folder:DIR@domain=speech"),
    ]
