"""Judging samples against truth, in steps that each can be used alone: arrays, labelled arrays, words, figures.

scores, pit, bands, multivariate    arrays: scores; PIT values and ranks; how far they may stray; ranks of vectors
measurements                        what each trajectory says about a forecast, in blocks of bounded memory
diagnostics, categorical            what all trajectories say at each lead time: observables and vectors; label fields
verdicts                            one word and one sentence per subject, with the rule and its false-alarm rate
two_sample                          two sets of runs from one initial state
sbc                                 the guide and the latents
recalibration                       intervals mended after the fact
known                               forecasters with known defects, to test all of this with
idata                               ArviZ InferenceData

Nothing here knows a network, a simulator or a run: arrays and xarray in, xarray and frozen records out.
"""
