"""The table of all rules, for the documentation."""

from multigrid.diagnosis.rules import RULES


def describe() -> str:
    """Markdown: a row a rule, with a link to its page."""
    rows = [f"| [{one.id}](doctor/{one.id}.md) | {one.cause} | {one.group} | {one.stage} |\n" for one in RULES]
    return "| rule | cause | part | stage |\n| --- | --- | --- | --- |\n" + "".join(rows)
