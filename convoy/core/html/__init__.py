"""HTML pages: the template engine, the shared style and the thumbnail macro."""
