"""The launcher of Spark kernels: what all languages share, and a folder for each language.

A start brings this folder's own files and its language's folder. `spark.py` and `spark_end.py` keep their names, since
kernelspecs name them: `{launcher}/spark.py LANGUAGE …` in argv, `{launcher}/spark_end.py` in `on_exit`.

These modules import each other relatively. On a node the folder has another name, so a file that is run as a script makes
a package of it first (`spark.as_package`; the scripts in the languages' folders do the same with the folder above theirs).
"""
