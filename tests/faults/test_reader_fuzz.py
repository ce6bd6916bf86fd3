"""A few hundred damaged files for every reader; `python -m tests.faults.fuzz_readers` reads as many as one likes."""

from __future__ import annotations

import re

import pytest

from tests.faults.fuzz_readers import _report, fuzz
from tests.faults.mutants import mutant, originals

FILES, SEED = 300, 20


@pytest.mark.parametrize("kind", ["dicom", "nifti", "pictures"])
def test_damaged_files_give_pixels_or_a_code_within_a_gigabyte_and_five_seconds(kind):
    outcomes = list(fuzz(kind, FILES, SEED))
    assert [found for found in outcomes if "failure" in found] == []
    assert [found["index"] for found in outcomes] == list(range(FILES))
    results = [found["result"] for found in outcomes]
    assert results.count("pixels") > FILES // 20
    assert len(set(results)) > 3


@pytest.mark.parametrize("kind", ["dicom", "nifti", "pictures"])
def test_mutant_is_brought_back_by_its_seed_and_number(kind):
    files = originals(kind)
    assert mutant(files, SEED, 7) == mutant(files, SEED, 7)
    assert len({mutant(files, SEED, number)[1] for number in range(50)}) > 45
    assert mutant(files, SEED, 7) != mutant(files, SEED + 1, 7)


@pytest.mark.slow
def test_fuzzer_tells_of_a_crash_a_hang_a_wait_and_memory_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    found = {outcome["index"]: outcome.get("failure", "") for outcome in fuzz("pictures", 6, SEED)}
    assert found[0] == "died: SIGSEGV"
    assert found[1] == "more than 5.0 s"
    assert found[2].startswith("memory: decode.unreadable")
    assert found[3] == "KeyError: 'other'"
    assert found[4] == "waits for more than 60.0 s"
    assert list(found) == [0, 1, 2, 3, 4, 5]


def test_summary_says_seed_commit_and_day(capsys):
    assert _report("nifti", 3, SEED, 0) == 0
    assert re.search(
        rf"seed {SEED}, first 0, commit ([0-9a-f]{{12}}\+?|unknown), \d{{4}}-\d\d-\d\d", capsys.readouterr().out
    )


SABOTAGE = """
import os, signal, sys
from importlib.abc import MetaPathFinder


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tests.faults.mutants":
            sys.meta_path.remove(self)
            import manifests.readers as readers
            from manifests.errors import ReadError

            first = int(sys.argv[sys.argv.index("--first") + 1])
            count = iter(range(first, 99))
            probe = readers.probe

            def sabotaged(path, reading):
                index = next(count)
                if index == 0:
                    os.kill(os.getpid(), signal.SIGSEGV)
                while index == 1:
                    pass
                if index == 2:
                    try:
                        bytearray(3 << 30)
                    except MemoryError as error:
                        raise ReadError("decode.unreadable", "hidden") from error
                if index == 3:
                    raise KeyError("other")
                if index == 4:
                    left, _ = signal.getitimer(signal.ITIMER_REAL)
                    assert 0 < left <= 60
                    signal.setitimer(signal.ITIMER_REAL, 0.1)
                    os.read(os.pipe()[0], 1)
                return probe(path, reading)

            sys.modules["__main__"].probe = sabotaged
        return None


sys.meta_path.insert(0, Finder())
"""
