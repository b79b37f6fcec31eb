"""A module that ends the process when it is imported, if it can."""

import sys

sys.exit(3)
