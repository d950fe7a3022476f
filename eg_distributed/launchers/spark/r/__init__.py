"""The R kernel: IRkernel, with Spark's driver JVM beside it."""
