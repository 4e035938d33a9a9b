"""Files that are whole or absent: write beside the target, flush to disk, rename."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sdecontrol.errors import BadInput


def writable_folder(folder: Path) -> Path:
    """The folder, made if absent. Raises: BadInput when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"saw output folder {folder}, which cannot be written to ({error.strerror}); "
            "wanted a folder you may write to. Choose another --out."
        ) from error
    return folder


def write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically: a reader or a crash sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
