"""The page of own features: run as its reader would, in programs of their own, and shows what comes out."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.documents import ROOT, fenced

PAGE = "examples/own-features.md"
_MARK = "=== shown ==="
_LANGUAGES = {
    "sh": "{}",
    "python": "python - <<'END'\n{}END",
    "toml": "cat > features.toml <<'END'\n{}END",
    "text": f"echo '{_MARK}'",
}


def outputs(directory: Path) -> list[tuple[str, str]]:
    """Return each text of the page, and what the block before it prints."""
    blocks = fenced((ROOT / PAGE).read_text(encoding="utf-8"), *_LANGUAGES)
    lines = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        command = _LANGUAGES[block.language].format(block.content)
        shown = following is not None and following.language == "text"
        lines += [command] if shown or block.language == "text" else [f"{{\n{command}\n}} > hidden"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("FRAUD_", "KAFKA_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        env=variables | {"PATH": path, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    texts = [block.content for block in blocks if block.language == "text"]
    return list(zip(texts, done.stdout.split(f"{_MARK}\n"), strict=False))


def test_the_page_shows_what_comes_out(tmp_path: Path) -> None:
    found = outputs(tmp_path)
    assert found
    for shown, output in found:
        assert shown == output


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        page = (ROOT / PAGE).read_text(encoding="utf-8")
        for text, output in outputs(Path(name)):
            page = page.replace(f"```text\n{text}```", f"```text\n{output}```", 1)
        (ROOT / PAGE).write_text(page, encoding="utf-8")
