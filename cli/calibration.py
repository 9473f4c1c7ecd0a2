"""`kvblend calibration`: what was measured of the model that a service serves. `kvblend calibrate` measures it."""

from rich.console import Console
from rich.table import Table

from kvblend.cli.connection import URL, APIKey, connect
from kvblend.cli.facts_table import facts_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.local_time import local_time

__all__ = ["calibration"]


def calibration(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Show the served model's calibration: divergence from full prefill by recompute ratio, and the ratios chosen."""
    with connect(url, api_key) as client:
        found = client.calibration()
    if as_json:
        print_json(found)
        return
    facts = {
        "model": f"{found.model}, {found.dtype}",
        "targets": f"a mean KL of {found.target_kl:g} nats, {found.target_agreement:g} of tokens the same",
        "measured": f"{local_time(found.created_at)}, on {found.num_questions} questions of {found.num_passages} "
        f"passages of {found.passage_tokens:.0f} tokens",
    }
    table = Table("encoded behind", "ratio", "KL", "upper 95%", "same token", "chosen", box=None, header_style="dim")
    for kind, own in found.kinds.items():
        for point in own.curve:
            chosen = "yes" if point.recompute_ratio == own.recompute_ratio else ""
            figures = (f"{point.recompute_ratio:g}", f"{point.kl:.4f}", f"{point.kl_upper95:.4f}")
            table.add_row(kind, *figures, f"{point.agreement:.3f}", chosen)
        if own.recompute_ratio is None:
            table.add_row(kind, "in full", "", "", "", "yes")
    console = Console()
    console.print(facts_table(facts))
    console.print(table)
