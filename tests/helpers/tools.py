"""Programs that the tests use and pip does not bring."""

import os
import shutil

import pytest


def tool(name: str, package: str) -> str:
    """Return the path of the program ``name``.

    Without it the test is skipped, or fails where CI is set: there ``.ci/run`` installs it.

    Args:
        name: the program, looked for on the PATH.
        package: the package of Debian and Ubuntu that has it.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    missing = f"{name} is not installed (Debian, Ubuntu: apt-get install {package})"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
