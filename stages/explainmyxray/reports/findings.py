"""The names of the 14 findings; all that the report writer and the labeler share."""

from pathlib import Path

from ruamel.yaml import YAML

FINDINGS: tuple[str, ...] = tuple(YAML(typ="safe").load(Path(__file__).with_name("findings.yaml")))
