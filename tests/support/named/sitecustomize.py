"""On the path of a process: its machine is called as TESTED_HOST_NAME says. Two hosts on one
machine would have one name.
"""

import os
import socket

if "TESTED_HOST_NAME" in os.environ:
    socket.gethostname = lambda: os.environ["TESTED_HOST_NAME"]
