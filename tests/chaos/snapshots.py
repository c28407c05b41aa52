"""Faults of the snapshots: a full directory, damaged and missing files."""

import os
import shutil
import subprocess
from pathlib import Path

TMPFS_BYTES = 96 * 1024 * 1024
CUT_SHARE = 0.6


class SnapshotPlace:
    """The directory of the snapshots, on a small file system of its own where this process may mount one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self.mounted = os.geteuid() == 0 and (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(directory)],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )
        self._ballast = directory / "ballast"

    def close(self) -> None:
        """Unmount, and let the content go."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.directory)], check=True, capture_output=True)
            self.mounted = False

    def files(self) -> list[Path]:
        """Files of snapshots, in order."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file() and path != self._ballast)

    def fill(self) -> bool:
        """Leave no space; False where there is no file system of its own to fill."""
        if not self.mounted:
            return False
        with self._ballast.open("wb", buffering=0) as file:
            block = bytes(256 * 1024)
            while len(block) > 512:
                try:
                    file.write(block)
                except OSError:  # full: smaller pieces may still fit
                    block = block[: len(block) // 2]
        return True

    def empty_again(self) -> None:
        """Take the ballast away."""
        self._ballast.unlink(missing_ok=True)

    def corrupt(self, draw: float) -> str | None:
        """Flip bytes in the middle of a file; its name, None where there is no snapshot."""
        path = self._pick(draw)
        if path is None:
            return None
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        for i in range(middle, min(middle + 16, len(content))):
            content[i] ^= 0xA5
        path.write_bytes(content)
        return str(path.relative_to(self.directory))

    def cut_short(self, draw: float) -> str | None:
        """Truncate a file; its name, None where there is no snapshot."""
        path = self._pick(draw)
        if path is None:
            return None
        os.truncate(path, int(path.stat().st_size * CUT_SHARE))
        return str(path.relative_to(self.directory))

    def remove_all(self) -> int:
        """Delete every snapshot; how many files there were."""
        count = len(self.files())
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != self._ballast:
                path.unlink(missing_ok=True)
        return count

    def _pick(self, draw: float) -> Path | None:
        # Newer manifests come last in their directory: the later half hurts most.
        files = [path for path in self.files() if path.stat().st_size > 0]
        return files[int(draw * len(files))] if files else None
