"""Name what is wrong with a store from its contents: a few images are encoded again under every suspicion.

What the store says about itself is not believed; it is compared with the config first, and differences are listed as refusals.

run.py           the command                             bench.py      the store, the tower, the images
checks.py        what can be seen without the tower      fit.py        one stored row against one forward
bases.py         how a row of each array is made         search.py     causes that need no changed picture
evidence.py      what is known about every row           pictures.py   changed pictures, one forward each
other_images.py  rows with another image's features      verdict.py    the findings in words
"""
