"""Faults of the snapshots: a full directory, damaged and missing files."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

TMPFS_BYTES = 1024 * 1024 * 1024
"""More than a run ever needs: what no snapshot names any more stays for ten minutes."""
CUT_SHARE = 0.6
TRIES = 5
"""Of making the file system as small as its content, which grows meanwhile."""


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
        self._aside = directory.with_name(f"{directory.name}-aside")

    def close(self) -> None:
        """Unmount, and let the content go."""
        self.empty_again()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.directory)], check=True, capture_output=True)
            self.mounted = False

    def files(self) -> list[Path]:
        """Files of snapshots, in order."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    def fill(self) -> str | None:
        """Leave no space, or (with no file system of its own) put a file in its place; None: not possible."""
        if not self.mounted:
            self.directory.rename(self._aside)
            self.directory.touch()
            return "a file in place of the directory of the snapshots"
        for _ in range(TRIES):
            space = os.statvfs(self.directory)
            if self._resize((space.f_blocks - space.f_bfree) * space.f_frsize):
                return "directory of the snapshots full"
        return None

    def empty_again(self) -> None:
        """Let it have space again."""
        if self.mounted:
            if not self._resize(TMPFS_BYTES):
                raise OSError(f"{self.directory} could not be made large again")
        elif self._aside.exists():
            self.directory.unlink()
            self._aside.rename(self.directory)

    def newest(self, agents: Iterable[str]) -> list[Path]:
        """The newest snapshot's own file of each partition of ``agents`` (names with their prefix)."""
        found = []
        for agent in agents:
            for partition in sorted((self.directory / agent).glob("*")):
                if names := sorted(partition.glob("*.json")):
                    found.append(names[-1])
        return found

    def damage(self, agents: Iterable[str], *, cut: bool, draw: float) -> list[str]:
        """Damage the newest snapshot of each partition of ``agents``: its own file or an object; their names.

        Whoever takes one of these partitions next must meet the damage.
        """
        damaged = []
        for manifest in self.newest(agents):
            text = manifest.read_text(encoding="utf-8", errors="replace")
            objects = [path for path in manifest.parent.glob("objects/*") if path.name in text]
            path = max(objects, key=lambda item: item.stat().st_size) if objects and draw < 0.5 else manifest
            if cut:
                os.truncate(path, int(path.stat().st_size * CUT_SHARE))
            else:
                content = bytearray(path.read_bytes())
                middle = len(content) // 2
                for i in range(middle, min(middle + 16, len(content))):
                    content[i] ^= 0xA5
                path.write_bytes(content)
            damaged.append(str(manifest.relative_to(self.directory)))
        return damaged

    def remove_all(self) -> int:
        """Delete every snapshot; how many files there were."""
        count = len(self.files())
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        return count

    def _resize(self, size_bytes: int) -> bool:
        command = ["mount", "-o", f"remount,size={size_bytes}", str(self.directory)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
