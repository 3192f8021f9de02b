"""Comparison of samples with truth: scores, tests and verdicts. Each module can be used alone.

scores, pit, bands, multivariate    scores of arrays; PIT values and ranks; bands of rank ECDFs; ranks of vectors
measurements                        PIT values and scores of each trajectory, in blocks of bounded memory
diagnostics, categorical            averages and tests over trajectories at each lead time: observables and vectors; label fields
verdicts                            one word and one sentence per quantity, with the rule and its false-alarm rate
two_sample                          comparison of two sets of runs from one initial state
sbc                                 calibration of the guide, and use of the latents
recalibration                       correction of intervals after training
known                               forecasters with known defects, to test the tests
idata                               ArviZ InferenceData

No module here uses a network, a simulator or a run: arrays and xarray in, xarray and frozen records out.
"""
