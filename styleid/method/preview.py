"""Previews: the image that a sampling predicts so far, shown while it runs."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.inversions.inversion import Inversion
from styleid.models.loading import default_model
from styleid.models.model import VAE, Model

Show = Callable[[int, int, NDArray[np.uint8]], object]


class Preview:
    r"""An `on_step` hook of `inject_styles` that shows the image which each evaluation predicts; it costs a decoding each.

    An evaluation moves the latent from $z = \sqrt{a} x_0 + \sqrt{1 - a} e$ at level a to
    $z' = \sqrt{b} x_0 + \sqrt{1 - b} e$ at level b. The hook sees both, so that the predicted x0 needs no evaluation of
    its own:

    $$x_0 = (\sqrt{1 - a} z' - \sqrt{1 - b} z) / (\sqrt{1 - a} \sqrt{b} - \sqrt{1 - b} \sqrt{a})$$

    With 1000 steps the first move of "diffusers" and "corrected" stays at its level, so that it shows nothing.

    Args:
        show: called as show(step, steps, image) after evaluation `step` of `steps`, counted from 1; image
            (H, W, 3) uint8 of the content's size
        content: the inversion that `inject_styles` is given
        model: as there
        vae: what decodes, such as a TAESD that `load_vae` has loaded; None: the model's own
        every: show every so many evaluations

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """

    def __init__(
        self, show: Show, content: Inversion, model: Model | None = None, vae: VAE | None = None, every: int = 1
    ) -> None:
        if not callable(show):
            raise TypeError(f"show: expected a function of (step, steps, image), got {type(show).__name__}")
        if not isinstance(content, Inversion):
            raise TypeError(f"content: expected an Inversion, got {type(content).__name__}")
        if type(every) is not int or every < 1:
            raise ValueError(f"every: expected a whole number from 1 on, got {every!r}")
        model = model or content.model or default_model()
        content.check_model(model, "content")
        self._show, self._every, self._vae = show, every, vae or model
        self._size = content.size
        self._levels = _core.schedule(model.engine, content.schedule, content.steps)["levels"]
        self._before: NDArray[np.float32] | None = None

    def __call__(self, step: int, steps: int, latents: NDArray[np.float32]) -> None:
        """As `inject_styles` calls it."""
        if step and self._before is not None and (step % self._every == 0 or step == steps):
            # A run of a lower strength begins late, and ends with the others.
            left_out = len(self._levels) - 1 - steps
            level, next_level = self._levels[left_out + step - 1 : left_out + step + 1]
            if level < next_level:
                image = self._vae.decode(_core.predicted(self._before, latents, level, next_level))
                self._show(step, steps, image[: self._size[0], : self._size[1]])
        self._before = latents.copy()
