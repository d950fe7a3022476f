"""What starts kernels on their node, a folder for each launcher: brought there with each start, so that no node has to have it.

Standard library only, Python 3.9 or later, no import from the rest of the product.
"""
