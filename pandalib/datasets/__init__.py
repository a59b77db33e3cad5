"""Where images come from: drawn by code, or a folder of your own."""
