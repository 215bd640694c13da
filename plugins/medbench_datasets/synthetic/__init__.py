"""Images made from a seed alone: four domains, 30 classes each, with sites, patients and masks.

A class is a pair of factors, six forms times five patterns, so that test classes are new pairs of
factors that were seen in training. Everything else is nuisance: position, rotation, scale,
illumination, the patient's look and the scanner's. All randomness is a counter-based hash
(`draws`), and pixels are made with additions, multiplications, divisions and square roots in
float64, so that image *i* is the same on every machine and with every version of numpy.
"""
