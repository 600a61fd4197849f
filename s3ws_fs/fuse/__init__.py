"""The kernel's side: requests of pyfuse3 in, calls of fs out. The only importer of pyfuse3."""
