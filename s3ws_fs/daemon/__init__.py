"""The process behind one mount: puts the parts together, and ends them in the right order."""
