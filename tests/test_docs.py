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
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                lost.append(f"{page.relative_to(ROOT)}: {target}")
    assert not lost, "\n".join(lost)
