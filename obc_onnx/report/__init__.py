"""What people and programs are told.

In come the values of all stages, out go text, JSON, pages and pictures. It decides and measures
nothing.
"""
