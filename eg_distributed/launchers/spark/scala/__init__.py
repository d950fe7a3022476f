"""The Scala kernel: Toree in Spark's driver JVM."""
