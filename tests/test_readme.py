"""What README says can be done, can be done: commands, files and the example records exist and are valid."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from orchestration.cli import main
from orchestration.ingest.readers import READERS
from orchestration.ingest.records import RawRecord
from orchestration.ingest.schema import priorities, validate
from orchestration.settings import PROJECT_ROOT
from rl.environments.storefront_items import read_storefront_catalogue

README = (PROJECT_ROOT / "README.md").read_text()
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text()


def test_every_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"(?:^|`|& )make ([a-z][a-z-]*)", README, re.MULTILINE))
    there = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert named <= there
    assert {"nightly", "test"} <= named


def test_every_talktrack_command_that_is_named_exists() -> None:
    named = set(re.findall(r"talktrack (promote|rollback|status|dataset|sample-logs|[a-z]+) ", README))
    assert {"promote", "rollback"} <= named & set(main.commands)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (PROJECT_ROOT / link).exists()


@pytest.mark.parametrize("name", re.findall(r"FORMAT=(\w+)", README))
def test_every_format_that_is_named_has_a_reader(name: str) -> None:
    assert name in READERS


@pytest.mark.parametrize("line", re.findall(r"^\{.*\}$", README, re.MULTILINE))
def test_the_example_records_are_valid(line: str) -> None:
    fields = json.loads(line)
    record = RawRecord(fields.pop("record"), fields, 1)
    assert isinstance(validate(record, priorities(read_storefront_catalogue())), dict)


def test_the_commented_settings_are_yaml() -> None:
    assert yaml.safe_load((PROJECT_ROOT / "talktrack.yaml").read_text())["workspace"] == "storefront"
