"""README.md names what is supported, no more and no less."""

from __future__ import annotations

import support_table

from pyllm.models import REGISTRY


def test_the_readme_is_fresh() -> None:
    text = support_table.README.read_text(encoding="utf-8")
    assert support_table.updated(text) == text, "run python tests/support_table.py"


def test_every_type_is_in_the_tables() -> None:
    tables = support_table.tables()
    assert all(f"`{name}`" in tables for name in REGISTRY)


def test_tables_follow_the_networks() -> None:
    toys = support_table.configs()
    assert support_table.heads(toys["bert"]) == set(support_table.HEAD_NAMES)
    assert support_table.tasks("encoder", "masked-lm") == ["fill-mask"]
    assert "translation" in support_table.tasks("encoder-decoder")
    assert "translation" not in support_table.tasks("decoder")
