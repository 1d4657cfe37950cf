"""The console in a browser; a package, so that one browser serves all of its modules."""
