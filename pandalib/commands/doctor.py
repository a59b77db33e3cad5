"""`python -m pandalib doctor`: what works here, what is missing, how to get it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from pandalib.doctor import check
from pandalib.experiments.config import TIERS

HELP = "what works here, what is missing, how to get it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tier",
        choices=TIERS,
        help="what the machine is to be good for (default: PANDALIB_TIER, then embedded)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(options: dict) -> int:
    """Print the findings; 1 if the tier cannot run, else 0."""
    findings = check(options["tier"])
    failed = any(finding.level == "FAIL" for finding in findings)
    if options["json"]:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(str, findings)))
        tier = options["tier"] or os.environ.get("PANDALIB_TIER") or "embedded"
        print(
            f"\nThe {tier} tier cannot run here yet: see FAIL above."
            if failed
            else f"\nThe {tier} tier can run here."
        )
    return int(failed)
