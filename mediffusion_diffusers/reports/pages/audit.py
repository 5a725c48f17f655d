"""The page of an audit: subgroups, and for each finding where its counterfactuals change images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...atomic_files import write_json
from ...audit.audit import Audit, AuditedLabel
from ...file_names import file_stems
from ..audit_tables import SUBGROUP_CAPTION, place_table, subgroup_table
from ..pictures.audit import change_map, example_panel
from ..pictures.drawing import save_picture
from .counterfactual_study import shown_provenance
from .report import HtmlReport, KeyFigure


RESULTS_FILE, PAGE_FILE = "audit.json", "audit.html"
_HOW_TO_READ = (
    "A counterfactual shows what the classifier goes by. If it removes a finding by changing a place where no finding "
    "can be, such as a corner with a marker, the classifier has learnt a shortcut. Places are the connected parts "
    "that hold 70 % of a change's energy. A place is suspect if it is changed in at least half of the images while "
    "less than a fifth of the change there lies within the finding's boxes; without boxes, look yourself."
)


def write_audit(audit: Audit, output_dir: str | Path) -> Path:
    """Write `audit.json`, the pictures as PNG and `audit.html`.

    Args:
        audit: what was found.
        output_dir: where the files go.

    Returns:
        Path of the page.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = audit.to_dict()
    provenance = results["provenance"]
    report = HtmlReport("Audit", f"{provenance['data']}, split {provenance['split']}")
    report.add_text(_HOW_TO_READ)
    report.add_section("Subgroups", SUBGROUP_CAPTION)
    report.add_table(*subgroup_table(results), strong_rows=[0])
    stems = file_stems([audited.label for audited in audit.labels])
    for audited, stem in zip(audit.labels, stems, strict=True):
        _add_finding(report, audited, results["findings"][audited.label], folder, stem)
    for note in audit.notes:
        report.add_text(f"Note: {note}")
    report.add_section("Provenance").add_provenance(shown_provenance(provenance))
    page = report.save(folder / PAGE_FILE)
    write_json(folder / RESULTS_FILE, results)  # last: it says that the audit is complete
    return page


def _add_finding(report: HtmlReport, audited: AuditedLabel, part: Mapping[str, Any], folder: Path, stem: str) -> None:
    suspects = [place for place in part["places"] if place["is_suspect"]]
    said = f"{part['num_images']} counterfactuals without {audited.label}."
    if suspects:
        said += f" Suspect: {', '.join(place['name'] for place in suspects)}."
    report.add_section(audited.label, said)
    if "planted" in part:
        planted = part["planted"]
        report.add_key_figures(
            [
                KeyFigure(f"of {planted['num_images']} planted markers are named", planted["share_named"]),
                KeyFigure("of their mirror images, which mean nothing", planted["share_mirrored_named"]),
            ]
        )
    picture = change_map(audited, [place["box"] for place in part["places"]])
    save_picture(picture, folder / f"map-{stem}.png")
    report.add_figure(picture, "Brighter: more of the changes' energy. Boxes: the places below.", "Map of changes")
    report.add_table(*place_table(part))
    panel = example_panel(audited)
    save_picture(panel, folder / f"panel-{stem}.png")
    report.add_figure(panel, "The first of them, with the places that are named in each.", "Examples")
