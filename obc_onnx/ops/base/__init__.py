"""What rules are made of: what a rule is, what it is given, and what families share."""
