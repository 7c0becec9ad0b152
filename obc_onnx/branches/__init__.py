"""Residual branches: values that a sum could do without, and what then becomes dead.

In comes a coupling, out go candidates; nothing is changed, scored or named by hand here.

- A candidate is one operand W of a sum V = U + W, where U could stand in for V: after unification U
  and V have the same axes, so that whoever reads V reads U as well, whatever widths are left.
- To remove it is to scale W to zero. So the graph with that zero written in front of the sum
  (`surgery.gate`) is the reference, and the graph in which U is read for V (`surgery.bypass`) is
  the result; neither knows of the other.
- The result keeps the axes, groups and names of the original's coupling, fewer of them: what stays
  of units and what stays of branches are independent, and either may be taken off first.
- What becomes dead follows from who reads what. Where no weight goes with an operand it is no
  candidate: the shortcut that its own branch reads, a mask, a bias.
- Sums of the top-level graph alone are looked at; subgraphs stay as they are.
"""
