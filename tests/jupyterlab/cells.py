"""Code of cells that several files run."""

from __future__ import annotations

from lab import Lab


def printing(lines: int, pause: float, where: str = "/tmp/printed") -> str:
    """Return a cell that prints numbers, and keeps on its node how far it is."""
    return f"""
import pathlib, time
for number in range({lines}):
    print(number, flush=True)
    pathlib.Path({where!r}).write_text(str(number))
    time.sleep({pause})
"""


def printed(lab: Lab, where: str) -> int:
    """Return how far a cell of `printing` is, by the file on its node."""
    found = [node.exec(["cat", where]).stdout.strip() for node in lab.nodes]
    return max((int(text) for text in found if text), default=-1)


PLOT = """
import struct, zlib
from IPython.display import Image

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

rows = b"".join(b"\\0" + bytes(255 * (abs(x - 3 * y) > 2) for x in range(300)) for y in range(100))
header = struct.pack(">IIBBBBB", 300, 100, 8, 0, 0, 0, 0)
Image(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
"""
WIDGET = """
import ipywidgets

button = ipywidgets.Button(description="click")
clicks = 0

def clicked(button):
    global clicks
    clicks += 1
    button.description = f"clicked {clicks}"

button.on_click(clicked)
button
"""
SLIDER = """
import ipywidgets

slider = ipywidgets.IntSlider(description="sum", min=0, max=100)
told = ipywidgets.Label("nothing yet")
moved = []

def move(change):
    moved.append(change["new"])
    told.value = f"moved to {change['new']}"

slider.observe(move, names="value")
ipywidgets.VBox([slider, told])
"""
FIGURE = """
import matplotlib.pyplot as plt

figure, axes = plt.subplots()
axes.plot(range(10), [x * x for x in range(10)])
plt.show()
"""
BINARY = """
import ipywidgets, os
from traitlets import Bytes

class Sent(ipywidgets.DOMWidget):
    data = Bytes().tag(sync=True)

size = 50 * 1024 * 1024
sent = Sent(data=os.urandom(size))
print("sent", len(sent.data))
"""
"""A widget's message with 50 MB beside its JSON. The front end has no such class, and gets its state all the same."""
DEBUGGED = "total = 0\nfor step in range(3):\n    total += step\nprint('total', total)"
