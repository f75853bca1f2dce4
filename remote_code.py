"""
How the code travels: what a checkpoint folder holds beside its weights so that it loads with `trust_remote_code=True`,
and who looks at it before it is uploaded.
"""

import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file, logging


logger = logging.get_logger(__name__)

# What `trust_remote_code=True` finds in a checkpoint folder. transformers registers only the class that happens to
# be saved, which would leave `AutoModel` out of a classifier's checkpoint: we always write the complete map.
AUTO_MAP = {
    "AutoConfig": "configuration_hf_mamba.HFMambaConfig",
    "AutoModel": "modeling_hf_mamba.HFMambaModel",
    "AutoModelForSequenceClassification": "modeling_hf_mamba.HFMambaForSequenceClassification",
    "AutoProcessor": "processing_hf_mamba.HFMambaProcessor",
    "AutoImageProcessor": "processing_hf_mamba.HFMambaImageProcessor",
}


def copy_remote_code(folder, name_or_path=None):
    """
    Copies every module that `AUTO_MAP` names, and the flat modules these import, into a checkpoint folder.

    Args:
        folder: where the checkpoint is saved. Modules that already lie there (saving into the checkout) are left.
        name_or_path: the checkpoint this code was loaded from. transformers caches only the modules that were used,
            so a model loaded without its processor, or the config alone, finds the rest of the code there.
    """
    folder = Path(folder)
    modules = list(dict.fromkeys(f"{target.partition('.')[0]}.py" for target in AUTO_MAP.values()))
    for module in modules:  # which grows by what each one imports
        source = _find_module(module, name_or_path)
        if source is None:
            logger.warning(f"{module} was not found beside {__file__}: the checkpoint {folder} is saved without it.")
            continue
        imported = [f"{name}.py" for name in get_relative_imports(source)]
        modules += [name for name in imported if name not in modules]
        target = folder / module
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)


def _find_module(module, name_or_path):
    """The file `module` beside this one or, if it isn't there, in the checkpoint; None if it is in neither."""
    source = Path(__file__).with_name(module)
    if source.is_file():
        return source
    # transformers keeps code from the Hub in a folder named for its commit: the other modules are of that one, too
    revision = source.parent.name if re.fullmatch("[0-9a-f]{40}", source.parent.name) else None
    try:
        found = cached_file(name_or_path, module, revision=revision) if name_or_path else None
    except OSError:  # the checkpoint has no such file, is gone, or can't be reached now
        found = None
    return found and Path(found)


@contextmanager
def code_left_in_place(folder, *parts):
    """Let `parts` save into the very folder this module lies in, as in a checkout.

    transformers copies the module of whatever has an `_auto_class`, and a file copied onto itself is a SameFileError.
    """
    copy = Path(folder) / Path(__file__).name
    parts = parts if copy.exists() and copy.samefile(__file__) else ()
    for part in parts:
        part._auto_class = None  # on the instance, for now
    try:
        yield
    finally:
        for part in parts:
            del part._auto_class


def check_before_upload(part, folder, repo_id):
    """
    Lets the package that this code belongs to check a folder before it is uploaded: its function `check_upload`, which
    raises what is wrong with it. The code of a checkpoint belongs to none: it uploads as any transformers model does.

    Args:
        part: the model, processor or config that was saved in the folder
        folder: what will be uploaded
        repo_id: where to
    """
    check = getattr(sys.modules.get(__package__), "check_upload", None)
    if check is not None:
        check(part, folder, repo_id)
