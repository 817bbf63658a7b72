"""Measures of generated images: plain numbers with the count of images behind them."""
