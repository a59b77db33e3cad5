"""`python -m pandalib score`: images before a detector, ranked; on demand a report, a table, JSON. 0, also with alarms; 1 where files could not be read."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path

HELP = "images before a fitted detector: a ranking, alarms, a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a detector, as `fit` writes")
    parser.add_argument("images", metavar="IMAGES", help="a folder, or a file")
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write an HTML report with heat maps: one file that needs nothing else",
    )
    parser.add_argument("--csv", metavar="FILE", help="write all scores as a table")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write all scores as JSON; - is standard output, in place of the list",
    )
    parser.add_argument(
        "--rate", type=float, help="another false-alarm rate than the detector's own"
    )
    parser.add_argument(
        "--top", type=int, default=50, help="how many images the list and the report show"
    )
    parser.add_argument("--recursive", action="store_true", help="search subfolders too")
    parser.add_argument("--weights", metavar="FILE", help="where the network's weights are now")


def main(options: dict) -> int:
    """Rank, write what was asked for, print the top; 1 if a file could not be read, else 0, alarms or not."""
    from pandalib.io import write_atomically
    from pandalib.inspection.inspector import Inspector
    from pandalib.inspection.report import write_report

    inspector = Inspector.load(options["model"], weights=options["weights"])
    threshold = inspector.threshold(options["rate"])  # first: it may say no
    ranking = inspector.rank(
        options["images"], top=options["top"], recursive=options["recursive"], skip_unreadable=True
    )
    rows = list(_rows(ranking, threshold))
    if options["report"]:
        name = "/".join(Path(options["images"]).expanduser().resolve().parts[-2:])
        write_report(
            options["report"],
            inspector,
            ranking,
            rate=options["rate"],
            title=f"Anomaly report: {name}",
        )
    if options["csv"]:
        write_atomically(Path(options["csv"]).expanduser(), _csv(rows).encode())
    if options["json"]:
        rate = inspector.false_alarm_rate if options["rate"] is None else options["rate"]
        whole = dict(
            threshold=threshold,
            false_alarm_rate=rate,
            n_images=len(rows),
            n_alarms=sum(row["alarm"] for row in rows),
            weights_sha256=inspector.backbone.weights_sha256,
            unreadable=[dict(file=name, reason=reason) for name, reason in ranking.unreadable],
            images=rows,
        )
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
        if options["json"] == "-":
            sys.stdout.write(text)
        else:
            write_atomically(Path(options["json"]).expanduser(), text.encode())
    if options["json"] != "-":
        print("rank  score / threshold  alarm  file")
        for row in rows[: options["top"]]:
            print(
                f"{row['rank']:4}  {row['relative']:17.3f}  {'yes' if row['alarm'] else 'no ':>5}  {row['file']}"
            )
        if len(rows) > options["top"]:
            print(f"... and {len(rows) - options['top']} more")
        print(
            f"{sum(row['alarm'] for row in rows)} of {len(rows)} images raise an alarm (score above {threshold:.4g})"
        )
    for name, reason in ranking.unreadable:
        print(f"pandalib: cannot read {name!r} as an image: {reason}", file=sys.stderr)
    return int(bool(ranking.unreadable))


def _rows(ranking, threshold: float):
    from pandalib.inspection.overlays import in_words

    for place, number in enumerate(ranking.order.tolist(), 1):
        score = float(ranking.scores[number])
        yield dict(
            rank=place,
            file=ranking.names[number],
            score=score,
            relative=score / threshold,
            alarm=score > threshold,
            image=float(ranking.parts["image"][number]),
            place=float(ranking.parts["place"][number]),
            hottest=in_words(ranking.spots[number]),
        )


def _csv(rows: list[dict]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
