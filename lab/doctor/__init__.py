"""`lab doctor`: everything that a first `lab up` can stumble on, looked at without changing anything."""

from lab.doctor.examination import examine
from lab.doctor.report import Report
from lab.drivers.findings import Finding

__all__ = ["Finding", "Report", "examine"]
