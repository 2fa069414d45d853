"""The kit's own modules, and a check of what they need. Python 3.8 must be able to read this file."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAME_MINOR = ("trl", "transformers")  # the kit uses their internals; others may be newer


def what_to_type(otherwise: str) -> str:
    """The advice of a message: use the .venv if there is one, `otherwise` what is given."""
    venv = ROOT / ".venv"
    if venv.is_dir() and Path(sys.prefix).resolve() != venv.resolve():
        python = ".venv\\Scripts\\python" if sys.platform == "win32" else ".venv/bin/python"
        return f"the environment in .venv is not active: type {python} for python"
    return otherwise


if sys.version_info < (3, 11):  # noqa: UP036 - some machines have an older one
    how = what_to_type("delete .venv if it is there, then: make train PYTHON=python3.12")
    sys.exit(f"error: this is Python {sys.version.split()[0]}, and 3.11 or newer is needed; {how}")


def wrong_packages() -> str:
    """Which packages are missing or not as requirements.txt says, and what to type; empty if all is well."""
    from importlib import metadata  # not at the top: it takes 20 ms, and grading needs no packages

    missing, wrong = [], []
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for name, wanted in re.findall(r"^(\S+)==(\d+\.\d+)", pins, re.MULTILINE):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        have, want = ([int(n) for n in re.findall(r"\d+", version)[:2]] for version in (str(found), wanted))
        same = name in SAME_MINOR and "KIT_CANARY" not in os.environ  # make canary tries newer ones
        if have < want or (same and have != want):
            wrong.append(f"{name} {found} is installed and {wanted} is needed")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        wrong.insert(0, f"not installed: {', '.join(missing[:3])}{more}")
    if not wrong:
        return ""
    how = what_to_type("type: python -m pip install -r requirements.txt (or make train, which makes .venv)")
    return f"{'; '.join(wrong[:3])}; {how}"
