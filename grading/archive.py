"""Zip files that come out the same byte for byte whenever their contents are the same."""

import zipfile
from pathlib import Path


def write_zip(out: Path, files: dict[str, tuple[bytes, bool]]) -> None:
    """Write {name: (contents, executable)} in the order of the names, without times or owners."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            contents, executable = files[name]
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, so that the mode counts
            info.external_attr = (0o100755 if executable else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, contents)
    temporary.replace(out)
