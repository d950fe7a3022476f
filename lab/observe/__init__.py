"""Looking at machines: snapshots, leaks, statistics, timelines, the export of all that is known."""
