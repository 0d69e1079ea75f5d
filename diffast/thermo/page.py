"""A profile as one picture and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html as markup
import io
from typing import Any

from diffast.thermo.panels import PANELS
from diffast.thermo.record import Profile
from diffast.thermo.summary import summary

_STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.4em}h2{font-size:1.05em;margin:.2em 0}"
    ".panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1.2em}"
    "img{width:100%}p{margin:.3em 0}ul{padding-left:1.2em}.note{color:#555}"
)


def png(profile: Profile) -> bytes:
    """Returns the picture of all panels as a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels = [panel for panel in PANELS if panel.shown(profile)]
    rows = (len(panels) + 1) // 2
    figure = _figure(11.0, 3.0 * rows + 0.5)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for panel, part in zip(panels, axes, strict=False):
        panel.draw(part, profile)
        _small(part)
        part.set_title(panel.title, fontsize=11, loc="left")
    for part in axes[len(panels) :]:
        part.set_axis_off()
    figure.suptitle(_title(profile), fontsize=11)
    return _bytes(figure, 84)


def html(profile: Profile) -> str:
    """Returns the page: the summary, each panel with what to do with it, and the notes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    parts = []
    for panel in PANELS:
        if not panel.shown(profile):
            continue
        figure = _figure(5.6, 3.2)
        part = figure.subplots()
        panel.draw(part, profile)
        _small(part)
        image = base64.b64encode(_bytes(figure)).decode()
        title, advice = markup.escape(panel.title), markup.escape(panel.advice)
        parts.append(
            f'<div><h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{image}">'
            f"<p>{advice}</p></div>"
        )
    lines = "".join(f"<li>{markup.escape(line)}</li>" for line in summary(profile))
    notes = "".join(f'<p class="note">{markup.escape(note)}</p>' for note in profile.notes)
    title = markup.escape(_title(profile))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><ul>{lines}</ul>"
        f'<div class="panels">{"".join(parts)}</div>'
        f"{'<h2>What was left out</h2>' if notes else ''}{notes}</body></html>\n"
    )


def _title(profile: Profile) -> str:
    return (
        f"Profile on {profile.count} {profile.data} samples of {profile.d} elements, "
        f"{profile.rho.size} noise levels, {profile.schedule}"
    )


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"Profile: pictures need matplotlib ({error}): pip install 'diffast[thermo]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _small(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    for text in axes.get_legend().get_texts() if axes.get_legend() else ():
        text.set_fontsize(8)


def _bytes(figure: Any, dpi: int = 100) -> bytes:
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=dpi, metadata={"Software": None})
    return made.getvalue()
