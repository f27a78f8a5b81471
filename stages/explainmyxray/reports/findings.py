"""The names of the 14 findings, and which of them are shown: what report writer and labeler share."""

from pathlib import Path

from ruamel.yaml import YAML

FINDINGS: tuple[str, ...] = tuple(YAML(typ="safe").load(Path(__file__).with_name("findings.yaml")))

SHOWN_SHARE = 0.05  # a finding that fewer of the sampled reports name is not shown, nor is its share measured
