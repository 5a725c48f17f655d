"""Pages: one HTML file each, with everything inside, to open or send."""
