"""The locks hold what pyproject.toml asks for, with hashes, and name no package index and no machine."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.services import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def wanted(extra: str) -> list[Requirement]:
    """What the project and one extra ask for, extras of the project itself followed."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    open_extras = [extra]
    while open_extras:
        for text in PROJECT["optional-dependencies"][open_extras.pop()]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                open_extras += sorted(requirement.extras)
            else:
                found.append(requirement)
    return found


@pytest.mark.parametrize("extra", ["test", "demo"])
def test_the_lock_has_every_dependency_in_a_version_that_fits(extra: str) -> None:
    text = (REPOSITORY / "locks" / f"{extra}.txt").read_text()
    pinned: dict[str, list[str]] = {}
    for name, version in PINNED.findall(text):  # one name may have a version for each platform
        pinned.setdefault(canonicalize_name(name), []).append(version)
    unmet = [
        str(requirement)
        for requirement in wanted(extra)
        if not any(
            requirement.specifier.contains(version, prereleases=True)
            for version in pinned.get(canonicalize_name(requirement.name), [])
        )
    ]
    assert unmet == [], "run `make lock` and commit it"


@pytest.mark.parametrize("extra", ["test", "demo"])
def test_the_lock_has_hashes_and_no_addresses(extra: str) -> None:
    text = (REPOSITORY / "locks" / f"{extra}.txt").read_text()
    assert text.count("--hash=sha256:") >= len(PINNED.findall(text)) > 0
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    assert not re.search(r"(^|\s)/\w", text), "a path of the machine that wrote it"
