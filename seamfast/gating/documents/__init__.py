"""What is made of a gate report: pages and summaries for people, standard formats for machines.

Each is a pure function of the report, and of the pictures where it shows any: equal input, equal bytes.
"""
