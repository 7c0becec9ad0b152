"""What each unit is worth.

In come a coupling, samples and the units that are left; out goes a number for each unit of each
group, from one class for each criterion. It must not know of budgets or plans.
"""
