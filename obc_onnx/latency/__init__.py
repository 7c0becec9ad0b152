"""How long a network runs once some of its units are gone, before anything is cut for good.

In come a coupling and times that an engine measured of a few widths, which are a file; out go
milliseconds for any widths. It must not know what units are worth, nor what a budget allows.
"""
