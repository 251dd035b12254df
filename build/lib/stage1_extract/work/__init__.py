"""One worker of an extraction, and the price of all of them."""
