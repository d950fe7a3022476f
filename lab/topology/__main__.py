"""Write docs/lab.schema.json: `python -m lab.topology`."""

from lab.topology.schema import FILE, text

FILE.write_text(text())
