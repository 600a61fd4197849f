"""The small process that keeps a mount while its daemon is replaced. Standard library only."""

import os

HOLDER_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
"""What is started, isolated from the environment: see there."""
