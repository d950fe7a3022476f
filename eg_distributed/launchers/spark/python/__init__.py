"""The Python kernel: ipykernel in the driver's interpreter, with a session of Spark in the background."""
