"""Where media come from: local files, object stores and the web, read within their limits."""
