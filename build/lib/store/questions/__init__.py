"""The questions about stored images, and the messages in which both stages exchange them."""
