"""What starts Spark kernels on their node: brought there with each start, so that no node has to have it.

Every file of this folder goes along. Standard library only, Python 3.9 or later, no import from the rest of the product;
among themselves these modules import relatively (see `spark.py` for how that works away from this package).
"""
