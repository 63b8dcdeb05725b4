"""Pictures of spectrograms: for validation while training, and for looking at what systems make of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evalkit.errors import Unavailable


def mel_panels(
    rows: Sequence[tuple[str, Mapping[str, np.ndarray]]],
    path: str | Path,
    *,
    frame_rate: float = 93.75,
    top_hz: float = 12_000.0,
    range_nepers: float = 9.0,
) -> None:
    """Write a grid of log-mel spectrograms: a row a clip, a column a system, one colour scale a row.

    Args:
        rows: name of the clip, and by name of the system its log-mel ``[frames, bands]`` in nepers.
        path: of the picture (png, jpg, svg, ...).
        range_nepers: what is shown below the loudest point of the row.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("pictures need matplotlib: pip install 'evalkit-audio[train]'") from error
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.3 * columns, 1.25 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for number, (line, (clip, panels)) in enumerate(zip(axes, rows, strict=True)):
        loudest = max(float(mel.max()) for mel in panels.values())
        for axis, (system, mel) in zip(line, panels.items(), strict=False):
            axis.imshow(
                np.asarray(mel, dtype=np.float32).T,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=loudest - range_nepers,
                vmax=loudest,
                extent=(0, len(mel) / frame_rate, 0, mel.shape[1]),
                interpolation="nearest",
            )
            axis.set_yticks([])
            axis.tick_params(labelsize=6)
            if number == 0:
                axis.set_title(system, fontsize=8)
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        line[0].set_ylabel(clip if len(clip) <= 24 else clip[:21] + "...", fontsize=6)
    figure.supxlabel(f"seconds; mel bands 0 to {top_hz / 1000:g} kHz, {range_nepers * 8.686:.0f} dB", fontsize=7)
    figure.savefig(path, dpi=80)
