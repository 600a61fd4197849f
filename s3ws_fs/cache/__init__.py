"""The local write-back cache: the only importer of lmdb."""
