"""Names of GPU models that are the same, and globs on them."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.models import folded, folded_glob, matches

BY_LABEL = "NVIDIA-A100-SXM4-80GB"
BY_NVML = "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize("name", [BY_LABEL, BY_NVML, "nvidia_a100_sxm4_80gb"])
@pytest.mark.parametrize(
    "glob", [BY_LABEL, BY_NVML, "*a100-sxm4*", "NVIDIA?A100*", "NVIDIA[ _]A100*", "*[!-]", "*A[0-9]0?[-]*"]
)
def test_every_spelling_of_a_model_is_matched_by_every_spelling_of_its_glob(name: str, glob: str) -> None:
    assert matches(name, glob)


@pytest.mark.parametrize(
    ("name", "glob", "want_match"),
    [
        ("A100", "[a-c]100", True),
        ("D100", "[a-c]100", False),
        ("L40S", "L40[!A-R]", True),
        ("L40S", "L40[!a-z]", False),
        ("a-b", "a[!_]b", False),
        ("acb", "a[!-]b", True),
        ("a]b", "a[]-]b", True),
        ("a b", "a[]-]b", True),
        ("a!b", "a[a!]b", True),
        ("a!b", "a[*!]b", True),
        ("a!b", "a[!!]b", False),
        ("a[b", "a[b", True),
        ("a[]b", "a[]b", True),
        ("a[!]b", "a[!]b", True),
        ("a5b", "a[9-0]b", False),
        ("H100", "A100", False),
    ],
)
def test_what_stands_in_brackets_keeps_its_meaning(name: str, glob: str, want_match: bool) -> None:
    assert matches(name, glob) is want_match


GLOBS = st.text(alphabet="aZ09.![]*?", max_size=8)
NAMES = st.text(alphabet="aAzZ059.![]", max_size=5)


@given(glob=GLOBS, name=NAMES)
def test_without_the_three_signs_a_glob_matches_as_it_did_in_either_case(glob: str, name: str) -> None:
    either = fnmatchcase(name.lower(), glob.lower())
    # [!Z] and [Z-a] name signs by their case, which does not count any more.
    if "[" not in glob:
        assert matches(name, glob) == either
    elif fnmatchcase(name.upper(), glob) and fnmatchcase(name.lower(), glob) and "[!" not in glob:
        assert matches(name, glob)


@given(glob=st.text(alphabet="aB-_ ![]*?09", max_size=8), name=st.text(alphabet="aAbB-_ 09]", max_size=5))
def test_a_name_in_another_spelling_is_matched_alike(glob: str, name: str) -> None:
    other = name.upper().replace(" ", "-").replace("_", " ")

    assert matches(name, glob) == matches(other, glob)
    assert fnmatchcase(folded(other), folded_glob(glob)) == matches(name, glob)
