"""What transformers' test mixins import and its source distribution lacks, as far as our tests need it."""

import functools
import sys


class ExportTesterMixin:
    """Base of ModelTesterMixin; its tests of export are not distributed."""


class GenerationTesterMixin:
    """For models that generate, which ours don't; ModelTesterMixin checks that they don't inherit it."""


# Fields that every config must take and keep: those of PreTrainedConfig, away from their defaults.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["HFMambaModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


class parameterized:  # the name of the package's own decorator
    """`@parameterized.expand(cases)`: one method of the class for each case, which the test gets as arguments."""

    @staticmethod
    def expand(cases):
        def define(test):
            namespace = sys._getframe(1).f_locals  # of the class being defined
            for index, case in enumerate(cases):
                name = f"{test.__name__}_{index}_{case[0] if isinstance(case, tuple) else case}"
                namespace[name] = _with_arguments(test, name, case if isinstance(case, tuple) else (case,))

        return define


def _with_arguments(test, name, arguments):
    @functools.wraps(test)
    def method(self):
        return test(self, *arguments)

    del method.__wrapped__  # pytest would take the test's arguments for fixtures
    method.__name__ = name
    return method


def url_to_local_path(url):
    """The mixins' pictures and sounds lie on the Hub; none of the tests that apply to us loads one."""
    return url
