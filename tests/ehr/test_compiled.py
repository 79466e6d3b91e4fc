"""Compiled loops are kept between processes, and never longer than the rules they call."""

import shutil
import subprocess
import sys

LOOP = """
from rules.compiled import compiled
from rules.rule import rule

rule = compiled(rule)

@compiled
def total(n):
    result = 0
    for k in range(n):
        result += rule(k)
    return result

print(total(10), len(total.stats.cache_hits))
"""


def test_a_changed_rule_in_another_file_is_followed_and_an_unchanged_one_is_not_compiled_again(tmp_path, repository):
    package = tmp_path / "rules"
    package.mkdir()
    shutil.copy(repository / "ehr" / "compiled.py", package)
    (package / "loop.py").write_text(LOOP)

    def run(rule: str) -> list[int]:
        (package / "rule.py").write_text(f"def rule(k):\n    return {rule}\n")
        done = subprocess.run(
            [sys.executable, "-m", "rules.loop"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return [int(number) for number in done.stdout.split()]

    assert run("k") == [45, 0]
    assert run("k") == [45, 1]
    assert run("2 * k")[0] == 90
