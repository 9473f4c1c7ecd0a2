"""What deploy/grafana and the alert rules hold: panels, queries, rules."""

import json
import re
import runpy
from typing import Any

import yaml

from tests.deploy.tools import CHART, DEPLOY

__all__ = ["ALERTS", "GRAFANA", "MADE", "NAMES", "queries", "rules"]

GRAFANA = DEPLOY / "grafana"
ALERTS = CHART / "files" / "alerts.yml"
MADE = runpy.run_path(str(GRAFANA / "make_dashboards.py"))
NAMES = sorted(MADE["DASHBOARDS"])


def queries(name: str) -> list[str]:
    """The PromQL of a dashboard as Grafana sends it, with every choice of its variables."""
    panels: list[dict[str, Any]] = json.loads((GRAFANA / name).read_text())["panels"]
    exprs = [target["expr"] for panel in panels for target in panel["targets"]]
    return [re.sub(r"\$(instance|model_name)", ".*", expr).replace("$__rate_interval", "1m") for expr in exprs]


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
