"""Captioning: a sentence a clip, scored against human captions; and classification by what a caption says."""

from __future__ import annotations

from evalkit import Prepare, Task, task
from evalkit.metrics.caption_labels import CAPTION_LABELS
from evalkit.metrics.captions import CAPTIONS, VOCABULARY
from evalkit.metrics.clap_score import CLAP_SCORE
from evalkit.metrics.semantic import FENSE_ENCODER, SEMANTIC
from evalkit.metrics.spice import CAPTION_PROGRAMS

METRICS = (*CAPTIONS, *CAPTION_PROGRAMS, *SEMANTIC, CLAP_SCORE, *VOCABULARY)
HEADLINE = ("cider_d", "spice", "spider", f"fense@{FENSE_ENCODER}", "sbert_sim@all-MiniLM-L6-v2", "rouge_l", "bleu_4")


def captioning(dataset: str, prepare: Prepare, summary: str) -> Task:
    """The captioning task of a data set whose clips have ``captions`` among their labels."""
    name = dataset.partition("@")[0].partition(":")[0]
    return Task(f"{name}-captioning", dataset, METRICS, prepare, "caption", summary, headline=HEADLINE)


@task
def captioning_tasks() -> list[Task]:
    """One task a captioned data set, and ESC-50 once more as classification."""
    esc50 = Prepare(sample_rate=44_100, seconds=5.0)
    return [
        captioning("clotho", Prepare(), "Freesound recordings of 15 to 30 s, five captions each"),
        captioning("audiocaps", Prepare(), "YouTube excerpts of 10 s, five captions each"),
        captioning("esc50", esc50, "environmental sounds; the reference is one fixed sentence a class"),
        captioning("scenes", Prepare(sample_rate=24_000), "generated sound scenes, five exact captions each"),
        Task(
            "esc50-classification",
            "esc50",
            CAPTION_LABELS,
            esc50,
            "caption",
            "environmental sounds, classified by the words of a caption: a stated rule, unparsable ones counted",
        ),
    ]
