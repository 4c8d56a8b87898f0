"""Known vulnerabilities of what is installed beside this Python: `python .ci/audit.py PATH_OF_PIP_AUDIT`.

pip-audit says that it found none also where its service knew not a single package. Here that is no pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from typing import Any

NONE, SOME, UNKNOWN = 0, 1, 3  # exit codes


def verdict(packages: list[dict[str, Any]]) -> tuple[int, str]:
    """An exit code and what is said, of pip-audit's list of packages; a checkout, which it cannot know, is none."""
    packages = [one for one in packages if "editable" not in one.get("skip_reason", "")]
    known = [one for one in packages if "skip_reason" not in one]
    unknown = [one["name"] for one in packages if "skip_reason" in one]
    if not known:
        return UNKNOWN, (
            f"NOT CHECKED: the advisory service knows none of the {len(packages)} packages, as a mirror of PyPI "
            "without its JSON interface does; run `make audit` where pypi.org is reached"
        )
    found = [
        f"{one['name']} {one['version']}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'no version yet'}"
        for one in known
        for vuln in one["vulns"]
    ]
    lines = [f"{len(known)} packages checked, {len(found)} known vulnerabilities", *found]
    if unknown:
        lines.append(f"not checked, for the service does not know them: {', '.join(unknown)}")
    return SOME if found else NONE, "\n".join(lines)


def main(tool: str) -> int:
    """Ask pip-audit."""
    words = [tool, "--path", sysconfig.get_path("purelib"), "--skip-editable", "--format", "json"]
    done = subprocess.run([*words, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"audit: NOT CHECKED: pip-audit has no answer: {last}")
        return UNKNOWN
    code, text = verdict(packages)
    print(f"audit: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
