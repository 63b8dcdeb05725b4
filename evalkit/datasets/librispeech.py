"""LibriSpeech: read English audio books, 16 kHz, official layout ``<subset>/<speaker>/<chapter>/<utterance>.flac``."""

from __future__ import annotations

from pathlib import Path

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

# Utterances: catalogue of TensorFlow Datasets (librispeech). Bytes and sha256: its url_checksums/librispeech.txt; the
# sha256 stand in torchaudio.datasets.librispeech as well.
SUBSETS = {
    "test-clean": (2620, 346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (2939, 328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "dev-clean": (2703, 337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (2864, 314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "train-clean-100": (28539, 6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (104014, 23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (148688, 30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}


def read(root: Path, *, subset: str = "test-clean") -> Layout:
    """List the utterances of one subset; clusters are speakers. Transcripts come from ``.trans.txt`` where there.

    Args:
        root: the folder that holds ``<subset>/``, or ``LibriSpeech/`` with it.
        subset: test-clean, test-other, dev-clean, dev-other, train-clean-100, train-clean-360 or train-other-500.

    Raises:
        UsageError: unknown subset. DataError: nothing of the subset is there.
    """
    if subset not in SUBSETS:
        raise UsageError(f"librispeech: subset={subset!r}: expected one of {', '.join(SUBSETS)}")
    homes = [root / subset, root / "LibriSpeech" / subset]
    home = next((h for h in homes if h.is_dir()), None)
    if home is None:
        raise DataError(f"no LibriSpeech {subset} in {root}: it holds neither {subset}/ nor LibriSpeech/{subset}/")
    items = []
    for chapter in sorted(home.glob("*/*")):
        speaker, texts = chapter.parent.name, _transcripts(chapter)
        for path in sorted(chapter.glob("*.flac")):
            labels = {"speaker": speaker, "chapter": chapter.name}
            if path.stem in texts:
                labels["transcript"] = texts[path.stem]
            items.append(Item(path.stem, speaker, path, labels=labels, split=subset))
    if not items:
        raise DataError(f"no utterance in {home}: expected {home.name}/<speaker>/<chapter>/<utterance>.flac")
    items.sort(key=lambda i: i.id)
    return Layout(items, f"LibriSpeech {subset}", SUBSETS[subset][0])


def _transcripts(chapter: Path) -> dict[str, str]:
    path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: text for name, _, text in (line.partition(" ") for line in lines) if text}


INFO = dataset(
    DatasetInfo(
        name="librispeech",
        version="2015",
        summary="read English audio books, 16 kHz; subset=test-clean: 2,620 utterances of 40 speakers",
        domain="speech",
        licence="CC BY 4.0",
        citation="V. Panayotov et al., Librispeech: an ASR corpus based on public domain audio books, ICASSP 2015, "
        "doi:10.1109/ICASSP.2015.7178964",
        homepage="https://www.openslr.org/12",
        read=read,
        folder="librispeech",
        archives=tuple(
            Archive(f"https://www.openslr.org/resources/12/{name}.tar.gz", f"{name}.tar.gz", f"sha256:{sha256}", size)
            for name, (_, size, sha256) in SUBSETS.items()
        ),
        remedy="the mirrors listed at https://www.openslr.org/12 hold the same files",
    )
)
