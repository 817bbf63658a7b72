"""What is written about measured folders: tables, and one HTML page."""
