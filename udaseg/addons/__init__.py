"""Papers on top of the baselines, each a folder with all that it brings, on `udaseg.plugin` alone.

A paper's folder has a table ``COMPONENTS``: kind -> name in recipes -> class.
"""
