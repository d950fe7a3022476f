"""What a kernelspec's launcher brings to the node."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eg_distributed import kernelspecs
from eg_distributed.launcher_files import Shipping, launcher_files, shipping_of

SPARK = {"launcher": "spark"}


def folders(files: Sequence[str]) -> set[str]:
    """Return the folders that *files* lie in; "" for the launcher's own."""
    return {path.rpartition("/")[0] for path in files}


@pytest.mark.parametrize(("language", "folder"), [("python", "python"), ("scala", "scala"), ("R", "r")])
def test_a_start_brings_the_files_of_its_language_alone(language: str, folder: str) -> None:
    """The common files and the language's folder go along, and nothing of the other languages."""
    argv = ["{python}", "{launcher}/spark.py", language, "-f", "{connection_file}"]
    assert folders([*shipping_of(SPARK, argv, "s").files]) == {"", folder}


@pytest.mark.parametrize("argv", [["{python}", "{launcher}/mine.py"], ["{launcher}/spark.py"], ["sh", "-c", "…"]])
def test_a_start_whose_language_is_unknown_brings_everything(argv: list[str]) -> None:
    """A script of the site's own may start any language, so it finds the files of all."""
    assert shipping_of(SPARK, argv, "s").files == launcher_files()
    assert folders([*launcher_files()]) == {"", "python", "scala", "r"}


def test_a_python_start_is_much_smaller_than_all_files() -> None:
    """A Python kernel's start leaves out the two thirds of the text that are Scala's and R's."""
    sizes = {language: sum(map(len, launcher_files(language).values())) for language in ("", "python")}
    assert sizes[""] - sizes["python"] > 70_000


def test_files_that_kernelspecs_name_are_at_the_top() -> None:
    """Kernelspecs on people's machines name `spark.py` in argv and `spark_end.py` in `on_exit`: both are always there."""
    for language in ("python", "scala", "R", ""):
        assert {"spark.py", "spark_end.py"} <= set(launcher_files(language))
    assert shipping_of(SPARK, ["x"], "s").on_exit == ("{python}", "{launcher}/spark_end.py")
    for name in kernelspecs.names():
        spec = kernelspecs.sample(name)
        assert all(word == "{launcher}/spark.py" for word in spec["argv"] if "{launcher}" in word)


def test_without_a_launcher_nothing_goes_along() -> None:
    """A plain kernelspec's start carries no file and runs nothing afterwards."""
    assert shipping_of({}, ["python3", "-m", "ipykernel"], "s") == Shipping()
