"""`lab doctor`: everything that a first `lab up` can stumble on, looked at without changing anything."""

from lab.doctor.examination import examine
from lab.doctor.findings import Finding, Report

__all__ = ["Finding", "Report", "examine"]
