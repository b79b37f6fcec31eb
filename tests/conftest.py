"""Where the tests run, something else may run too: how long a thing took is no reason to fail."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.leaks"]

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Configurations and keys of tests are secret, as those of users must be.
os.umask(0o077)

# Where Kerberos is installed, a client of Negotiate looks for a ticket first. No test asks the network for one, or
# the realm of this machine; tests/system/kdc.py has a realm of its own.
os.environ["KRB5_CONFIG"] = os.devnull
