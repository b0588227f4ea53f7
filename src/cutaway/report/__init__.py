"""Results for people: a page to hand on (`report.html`), and what a terminal prints.

Takes plain data and gives text. Importing this package loads nothing; each module imports what it needs.
"""
