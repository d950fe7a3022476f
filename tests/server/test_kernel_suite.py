"""jupyter_kernel_test's suite: what it says of a kernel on a host is what it says of the same kernel here."""

from __future__ import annotations

import io
import unittest

import jupyter_kernel_test
import pytest

from .site import KERNEL, Site


class Suite(jupyter_kernel_test.KernelTests):  # type: ignore[misc, unused-ignore] # not in every environment
    """All that ipykernel has an answer for."""

    __test__ = False  # pytest is not to run it by itself
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('oops', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("def f(x):\n  x*2",)
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError"
    code_execute_result = ({"code": "6*7", "result": "42"},)
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
    )
    supported_history_operations = ("tail",)
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


def outcomes(kernel: str) -> dict[str, str]:
    """Run the suite on *kernel*; return what became of each of its tests."""
    suite = type("Suite", (Suite,), {"kernel_name": kernel})
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(suite)
    names = [test._testMethodName for test in tests]  # type: ignore[union-attr]
    result = unittest.TextTestRunner(io.StringIO()).run(tests)
    found = dict.fromkeys(names, "passed")
    for kind in ("failures", "errors", "skipped"):
        for test, *_ in getattr(result, kind):
            found[getattr(test, "_testMethodName", str(test))] = kind
    return found


@pytest.mark.long
def test_the_suite_says_the_same_of_a_kernel_on_a_host(site: Site) -> None:
    """Message by message, as the suite looks at them."""
    remote = outcomes(KERNEL)
    assert remote == outcomes("python3")
    assert sum(outcome == "passed" for outcome in remote.values()) >= 10
