"""
Shares a finished run on the Hub, after a check that it works without this package.

    python -m hf_mamba.classification.share outputs/quickstart                        only checks the folder
    python -m hf_mamba.classification.share outputs/quickstart me/quickstart          checks and uploads it
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from ..modeling_hf_mamba import HFMambaPreTrainedModel
from ..processing_hf_mamba import HFMambaProcessor
from .runs.checkpoints import load_run
from .runs.recipes import shareable_recipe
from .support.cards import name_repo_in_card
from .support.command_line import run_command
from .support.files import read_mapping, write_yaml
from .support.hub import check_may_write, explain_push_error
from .support.run_files import CALIBRATION_FILE, RECIPE_FILE, RESULTS_FILE, TEST_FILE, VALIDATION_FILE
from .support.upload_check import check_checkpoint


# What makes up a checkpoint: weights, configs, processor, code, card, results, recipe. A folder's other files stay
# there: predictions quote a user's data, training_args.bin is a pickle, trainer_state.json names folders.
SHARED = (
    *("model*.safetensors", "model.safetensors.index.json", "config.json", "*.py", "README.md", RECIPE_FILE),
    *(RESULTS_FILE, "train_results.json", VALIDATION_FILE, TEST_FILE, CALIBRATION_FILE),
    *("processor_config.json", "preprocessor_config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.*", "vocab.*", "merges.txt", "*.model"),  # of a user's own tokenizer
)


def share_run(
    folder: str | Path,
    model: HFMambaPreTrainedModel,
    processor: HFMambaProcessor | None,
    repo_id: str,
    *,
    revision: str | None = None,
    same_code: bool = True,
) -> CommitInfo:
    """
    Checks a run's folder in a clean room and uploads the files that make up a checkpoint, just as they were checked.

    Args:
        folder: the run's output folder
        model, processor: what was saved in it; the processor may be None
        repo_id: the repository, which exists
        revision: the branch, created if need be; None is main
        same_code: as in `check_checkpoint`

    Returns:
        huggingface_hub's CommitInfo

    Raises:
        ValueError: the check failed, or the Hub refused: one line that says why and what to do.
    """
    with tempfile.TemporaryDirectory() as staged:
        stage(folder, staged, repo_id)
        check_checkpoint(staged, model, processor, name=str(folder), same_code=same_code)
        try:
            api = HfApi()
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id, folder_path=staged, revision=revision, commit_message="Upload HF-Mamba checkpoint"
            )
        except Exception as error:
            raise ValueError(
                f"{folder} could not be uploaded: {explain_push_error(error)}. Nothing is lost, the run is in "
                f"{folder}: upload it by `python -m hf_mamba.classification.share {folder} {repo_id}`."
            ) from error


def stage(folder: str | Path, staged: str | Path, repo_id: str) -> None:
    """Copies what is shared, without the folders of this machine, to where it is checked and uploaded from."""
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and is_shared(path.name):
            shutil.copyfile(path, Path(staged, path.name))
    name_repo_in_card(staged, repo_id)
    recipe = Path(staged, RECIPE_FILE)
    if recipe.is_file():
        write_yaml(recipe, shareable_recipe(read_mapping(recipe, "Recipe")))


def is_shared(name: str) -> bool:
    """Is a file of this name, in a run's folder, shared?"""
    return any(fnmatch(name, pattern) for pattern in SHARED)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: checks, and uploads if a repository is named."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.share", description=__doc__.split("\n")[1]
    )
    parser.add_argument("folder", help="the output folder of a finished run")
    parser.add_argument(
        "repo_id", nargs="?", help="the repository to upload to, me/name; without it the folder is only checked"
    )
    parser.add_argument("--private", action="store_true", help="for a new repository: only its owner sees it")
    args = parser.parse_args(argv)
    model, processor = load_run(args.folder)
    if args.repo_id is None:
        check_checkpoint(args.folder, model, processor, same_code=False)
        print(f"{args.folder} works without this package installed: it can be shared.")
        return
    try:
        repo_id = HfApi().create_repo(args.repo_id, private=args.private or None, exist_ok=True).repo_id
        check_may_write(repo_id)
    except Exception as error:
        raise ValueError(f"{args.repo_id}: {explain_push_error(error)}.") from error
    print(share_run(args.folder, model, processor, repo_id, same_code=False).commit_url)


if __name__ == "__main__":
    run_command(main)
