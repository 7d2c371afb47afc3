"""icecore.store: pooled activations in HDF5 segments, and the catalog that says which rows are alive."""

from .array import Batch, FeatureArray
from .aside import Moved
from .backup import Backup, backup_store
from .champions import Promotion, champion_of, champions, promote, promotions, rollback
from .collect import Collected, Collection, Dropped
from .compact import Compaction
from .contract import NUMERICS, Column, Contract, Difference, Pooling
from .difference import ImageDiff, StoreDiff
from .discard import Discarded, discard_bundles
from .errors import (
    AmbiguousLayerError,
    ClosedArrayError,
    ContractMismatchError,
    DiskError,
    ExportError,
    ExportExistsError,
    FormatError,
    GenerationNotFoundError,
    IncompleteColumnError,
    LayerNotFoundError,
    LockedError,
    MissingExtraError,
    NarrowingError,
    RefusedError,
    RunNotFoundError,
    SetNotFoundError,
    SourceError,
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
    UnknownImageError,
    UnknownLabelError,
    VersionNotFoundError,
)
from .exporting import Export, export
from .feature_set import Failure, FeatureSet, Matrix
from .feature_store import FeatureStore
from .folder import FolderScan, scan_folder
from .health import Check, check_disk, check_store
from .history import Revert, Version
from .losses import Lost
from .manifest import ManifestScan, scan_manifest, scan_source
from .metrics import store_metrics, write_metrics
from .needs import Kept
from .plan import Plan, WorkGroup, plan_sync
from .repair import RepairReport, repair_store
from .runs import Run, find_run, list_runs
from .scan import IMAGE_EXTENSIONS, Scan, SourceImage
from .status import Pending, SetStatus, StoreStatus, store_status
from .summary import Summary
from .tunings import Tuning, list_tunings, read_tuning, tuned_weights_path
from .usage import GenerationUsage, StoreUsage, store_usage
from .verify import Problem, VerifyReport, verify_store
from .writer import RefusedRow, Writer

__all__ = [
    "IMAGE_EXTENSIONS",
    "NUMERICS",
    "AmbiguousLayerError",
    "Backup",
    "Batch",
    "Check",
    "ClosedArrayError",
    "Collected",
    "Collection",
    "Column",
    "Compaction",
    "Contract",
    "ContractMismatchError",
    "Difference",
    "Discarded",
    "DiskError",
    "Dropped",
    "Export",
    "ExportError",
    "ExportExistsError",
    "Failure",
    "FeatureArray",
    "FeatureSet",
    "FeatureStore",
    "FolderScan",
    "FormatError",
    "GenerationNotFoundError",
    "GenerationUsage",
    "ImageDiff",
    "IncompleteColumnError",
    "Kept",
    "LayerNotFoundError",
    "LockedError",
    "Lost",
    "ManifestScan",
    "Matrix",
    "MissingExtraError",
    "Moved",
    "NarrowingError",
    "Pending",
    "Plan",
    "Pooling",
    "Problem",
    "Promotion",
    "RefusedError",
    "RefusedRow",
    "RepairReport",
    "Revert",
    "Run",
    "RunNotFoundError",
    "Scan",
    "SetNotFoundError",
    "SetStatus",
    "SourceError",
    "SourceImage",
    "StoreDamagedError",
    "StoreDiff",
    "StoreError",
    "StoreNotFoundError",
    "StoreStatus",
    "StoreUsage",
    "Summary",
    "Tuning",
    "UnknownImageError",
    "UnknownLabelError",
    "VerifyReport",
    "Version",
    "VersionNotFoundError",
    "WorkGroup",
    "Writer",
    "backup_store",
    "champion_of",
    "champions",
    "check_disk",
    "check_store",
    "discard_bundles",
    "export",
    "find_run",
    "list_runs",
    "list_tunings",
    "plan_sync",
    "promote",
    "promotions",
    "read_tuning",
    "repair_store",
    "rollback",
    "scan_folder",
    "scan_manifest",
    "scan_source",
    "store_metrics",
    "store_status",
    "store_usage",
    "tuned_weights_path",
    "verify_store",
    "write_metrics",
]
