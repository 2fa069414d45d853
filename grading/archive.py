"""Zip files that are the same byte for byte if their contents are the same, on every system."""

import math
import zipfile
from pathlib import Path

from kit.base.errors import UserError
from kit.base.files import rename, writing

Files = dict[str, tuple[bytes, bool]]  # {name: (contents, executable)}


def write_zip(out: Path, files: Files, most: float = math.inf) -> None:
    """Write the files in the order of their names, without times or owners, to `--out`.

    Raises UserError, also if the zip would have more than `most` MB; what stood there then stays.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    with writing(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, (contents, executable) in sorted(files.items()):
                info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system = 3  # Unix, so that the mode counts
                info.external_attr = (0o100755 if executable else 0o100644) << 16
                archive.writestr(info, contents, zipfile.ZIP_DEFLATED)
        if (size := temporary.stat().st_size / 1e6) > most:
            temporary.unlink()
            name, (contents, _) = max(files.items(), key=lambda entry: len(entry[1][0]))
            largest = f"{name} alone has {len(contents) / 1e6:.1f} MB"
            raise UserError(f"the zip would have {size:.1f} MB, and {most:g} are allowed; {largest}")
        rename(temporary, out)
