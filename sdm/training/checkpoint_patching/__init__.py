"""Checkpoint patching: weights between a locked and a fine-tuned model, chosen by a validation metric.

A new modality that is tuned together with the binding one fits better, while the modalities that the binding one was
aligned to before fit worse. TaxaBind (arXiv 2411.00683, section 3.3) interpolates the whole state of an encoder
between the two, `theta = (1 - alpha) * locked + alpha * fine-tuned`, one modality after another, each keeping the
alpha with the best zero-shot accuracy. This package can also blend several fine-tuned states of a modality on a
simplex, and search the alphas of all modalities together.

Interpolating weights goes back to WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) and to patching by
interpolation (Ilharco et al. 2022, arXiv 2208.05592).

`blending` has the means of weights, `search` the search for alphas, `report` its table and plot, `patch` the command.
"""
