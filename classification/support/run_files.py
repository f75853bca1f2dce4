"""The names of the files of a run's output folder. docs/architecture.md says what each holds."""

RECIPE_FILE = "recipe.yaml"  # written when a run starts
RESULTS_FILE = "all_results.json"  # written when it has ended
VALIDATION_FILE = "validation_results.json"
TEST_FILE = "test_results.json"
CALIBRATION_FILE = "calibration.json"
PREDICTIONS_FORMATS = ("csv", "jsonl", "parquet")
PREDICTIONS_FILES = tuple(f"predictions.{suffix}" for suffix in PREDICTIONS_FORMATS)

REPORT_FILES = {split: f"{split}_report.json" for split in ("validation", "test")}
TENSORBOARD_FOLDER = "runs"
AUDIT_JSON, AUDIT_MD, AUDIT_PNG = AUDIT_FILES = ("audit.json", "audit.md", "audit.png")  # by --do_audit
