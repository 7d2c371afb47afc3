"""bf16 against fp32 on real photos: the cosine of each image's features, and what a logistic regression makes of them.

Both precisions forward the same photos in one run. With --check it ends with 1 unless every cosine is at least
0.999 and the held-out accuracy of every column is within one image. Needs folders SPLIT/LABEL/IMAGE below
ASSETS/data and mobilenet_v2_features.pth and squeezenet1_1.pth in ASSETS/weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

LEAST_COSINE = 0.999
MOST_IMAGES = 1
NETWORKS = {
    "mobilenet_v2": ("mobilenet_v2_features.pth", ["features.6", "features.13", "features.18"]),
    "squeezenet1_1": ("squeezenet1_1.pth", ["features.5", "features.8", "features.12"]),
}
DATA = ("hymenoptera", "flowers")


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    assets = os.environ.get("ICECORE_TEST_ASSETS", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--assets", type=Path, default=Path(assets))
    parser.add_argument("--images", type=int, default=100_000, help="images drawn of each folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.assets / "weights").is_dir():
        print(f"skipped: no weights and photos in {options.assets}; name their folder with --assets", file=sys.stderr)
        return 0
    rows = [row for network in NETWORKS for data in DATA for row in measure(network, data, options)]
    met = all(row["cosine_met"] and row["accuracy_met"] for row in rows)
    if options.json:
        print(json.dumps({"goals": {"cosine": LEAST_COSINE, "images": MOST_IMAGES}, "met": met, "rows": rows}))
    else:
        for row in rows:
            print(_line(row))
        print("goals met" if met else "goals missed")
    return int(options.check and not met)


def measure(network: str, data: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Give a row for each column and each precision but fp32."""
    from icecore.extract import compare_precisions, load_backbone
    from icecore.extract.layers import columns_for
    from icecore.store import scan_folder
    from icecore.train import labels_from_folders, probe_features

    weights, layers = NETWORKS[network]
    backbone = load_backbone(network, options.assets / "weights" / weights)
    columns = columns_for(backbone.layers, layers, ["avg"], dtype="float32")
    scan = scan_folder(options.assets / "data" / data)
    found = compare_precisions(
        backbone, columns, scan, images=options.images, device=options.device, compilation="never"
    )
    labels = labels_from_folders(found.ids)
    exact, *others = found.computed
    rows = []
    for column in columns:
        features = {computed.precision: computed.features[column] for computed in found.computed}
        probe = probe_features(features, found.ids, labels)
        assert probe is not None, "the photos are in folders SPLIT/LABEL"
        for computed in others:
            apart = abs(probe.right[computed.precision] - probe.right["fp32"])
            rows.append(
                {
                    "network": network,
                    "data": data,
                    "device": found.device,
                    "images": len(found.ids),
                    "column": column.name,
                    "precision": computed.precision,
                    "worst": computed.agreement[column].worst,
                    "median": computed.agreement[column].median,
                    "cosine_met": computed.agreement[column].worst >= LEAST_COSINE,
                    "judged": probe.judged,
                    "right_fp32": probe.right["fp32"],
                    "right": probe.right[computed.precision],
                    "differing": probe.differing[computed.precision],
                    "accuracy_met": apart <= MOST_IMAGES,
                    "images_per_second_fp32": round(exact.images_per_second, 1),
                    "images_per_second": round(computed.images_per_second, 1),
                }
            )
    return rows


def _line(row: dict[str, Any]) -> str:
    met = ("" if row["cosine_met"] else " cosine MISSED") + ("" if row["accuracy_met"] else " accuracy MISSED")
    speed = f"{row['images_per_second_fp32']} -> {row['images_per_second']} images/s"
    return (
        f"{row['network']} {row['data']} {row['column']} {row['precision']}: cosine {row['worst']:.6f} worst, "
        f"{row['median']:.6f} median; right {row['right_fp32']} -> {row['right']} of {row['judged']}, "
        f"{row['differing']} labelled otherwise; {speed}{met}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
