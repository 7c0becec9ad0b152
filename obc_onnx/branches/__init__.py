"""Branches: values that others could stand in for, and what then becomes dead.

In comes a coupling, out go candidates; nothing is changed, scored or named by hand here.

- A candidate is a value V with another one U that it is computed from and that could stand in for
  V: after unification both have the same axes, so that whoever reads V reads U as well, whatever
  widths are left. Where V is a sum U + W, its branch is W; in any other case it is a span.
- To remove it is to scale V - U to zero. So the graph in which U + 0 * (V - U) is written behind V
  (`surgery.gate`) is the reference, and the graph in which U is read for V (`surgery.bypass`) is
  the result; neither knows of the other.
- The result keeps the axes, groups and names of the original's coupling, fewer of them: what stays
  of units and what stays of branches are independent, and either may be taken off first.
- What becomes dead follows from who reads what. Where no node goes that multiplies or holds a
  matrix there is no candidate: the shortcut that its own branch reads, a mask, a bias, a norm.
- Values of the top-level graph alone are looked at; subgraphs stay as they are.
"""
