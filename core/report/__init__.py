"""What the pages of all reports share: one self-contained HTML file, tables, charts."""
