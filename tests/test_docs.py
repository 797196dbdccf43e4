"""What the documentation takes from the code is in step with it."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_settings_page_is_what_config_says() -> None:
    module = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))
    assert module["PAGE"].read_text(encoding="utf-8") == module["page"](), "run python scripts/settings_page.py"


def test_links_between_pages_lead_somewhere() -> None:

    lost = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        files = [page.parent / target for target in targets if not re.match(r"[a-z]+:", target)]
        lost += [f"{page.relative_to(ROOT)}: {file.name}" for file in files if not file.exists()]
    assert not lost, "\n".join(lost)
